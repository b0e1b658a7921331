#pragma once
#define OMPI_SKIP_MPICXX 1  // the C++ bindings, which MPI itself has dropped
#include <ATen/core/ivalue.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <mpi.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/HashStore.hpp>

#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "moecod/distributed/c10d_group.hpp"

namespace moecod::distributed {

/// MPI as a transport of c10d, for processes on CPUs (LibTorch's wheels are built without theirs). Every call is finished
/// when it returns, and a sum does not depend on where in a message a number lies. Carries float32, float64, int64, int32
/// and uint8, of at most 2^31 - 1 elements a call.
class MpiBackend final : public c10d::Backend {
 public:
  MpiBackend(int rank, int world) : Backend(rank, world) {}

  const std::string getBackendName() const override { return "mpi"; }

  c10::intrusive_ptr<c10d::Work> broadcast(std::vector<at::Tensor>& tensors,
                                           const c10d::BroadcastOptions& options) override {
    at::Tensor& t = only(tensors);
    check(MPI_Bcast(t.mutable_data_ptr(), count(t), type(t), int(options.rootRank), MPI_COMM_WORLD), "MPI_Bcast");
    return done(tensors);
  }

  c10::intrusive_ptr<c10d::Work> allreduce(std::vector<at::Tensor>& tensors,
                                           const c10d::AllreduceOptions& options) override {
    TORCH_CHECK(options.reduceOp == c10d::ReduceOp::SUM, "MpiBackend: allreduce sums, and nothing else");
    sum(only(tensors));
    return done(tensors);
  }

  c10::intrusive_ptr<c10d::Work> _allgather_base(at::Tensor& out, at::Tensor& in,
                                                 const c10d::AllgatherOptions&) override {
    std::vector<at::Tensor> tensors{out};
    TORCH_CHECK(out.is_contiguous() && in.is_contiguous() && out.numel() == in.numel() * getSize(),
                "MpiBackend: allgather needs contiguous tensors, the output of ", getSize(), " times the input");
    check(MPI_Allgather(in.const_data_ptr(), count(in), type(in), out.mutable_data_ptr(), count(in), type(out),
                        MPI_COMM_WORLD), "MPI_Allgather");
    return done(tensors);
  }

  c10::intrusive_ptr<c10d::Work> alltoall_base(at::Tensor& out, at::Tensor& in, std::vector<int64_t>& receive,
                                               std::vector<int64_t>& send, const c10d::AllToAllOptions&) override {
    std::vector<at::Tensor> tensors{out};
    TORCH_CHECK(out.is_contiguous() && in.is_contiguous(), "MpiBackend: alltoall needs contiguous tensors");
    // Elements, not rows; a rank may have no row, but each row has as many elements on all ranks.
    const int64_t row = in.dim() > 1 ? c10::multiply_integers(in.sizes().slice(1)) : 1;
    const Blocks from(send, row), to(receive, row);
    check(MPI_Alltoallv(in.const_data_ptr(), from.counts.data(), from.begins.data(), type(in), out.mutable_data_ptr(),
                        to.counts.data(), to.begins.data(), type(out), MPI_COMM_WORLD),
          "MPI_Alltoallv");
    return done(tensors);
  }

  c10::intrusive_ptr<c10d::Work> barrier(const c10d::BarrierOptions&) override {
    check(MPI_Barrier(MPI_COMM_WORLD), "MPI_Barrier");
    std::vector<at::Tensor> none;
    return done(none);
  }

 private:
  /// Each rank adds up one part of the tensor, in the order of the ranks, and sends it to all. MPI_Allreduce may add in an
  /// order that depends on an element's place in the message, and c10d's Reducer moves gradients between messages.
  void sum(at::Tensor& t) const {
    const int64_t part = (t.numel() + getSize() - 1) / getSize();
    at::Tensor mine = at::zeros({getSize(), part}, t.options());
    mine.view(-1).slice(0, 0, t.numel()).copy_(t.view(-1));
    at::Tensor all = at::empty_like(mine);
    check(MPI_Alltoall(mine.const_data_ptr(), count(mine[0]), type(t), all.mutable_data_ptr(), count(mine[0]), type(t),
                       MPI_COMM_WORLD), "MPI_Alltoall");
    at::Tensor total = all[0].clone();
    for (int64_t r = 1; r < getSize(); ++r) total.add_(all[r]);
    check(MPI_Allgather(total.const_data_ptr(), count(total), type(t), all.mutable_data_ptr(), count(total), type(t),
                        MPI_COMM_WORLD), "MPI_Allgather");
    t.view(-1).copy_(all.view(-1).slice(0, 0, t.numel()));
  }

  struct Blocks {
    std::vector<int> counts, begins;
    Blocks(const std::vector<int64_t>& rows, int64_t row) {
      int64_t begin = 0;
      for (const int64_t n : rows) {
        TORCH_CHECK(begin + n * row <= std::numeric_limits<int>::max(), "MpiBackend: at most 2^31 - 1 elements a call");
        counts.push_back(int(n * row));
        begins.push_back(int(begin));
        begin += n * row;
      }
    }
  };

  static at::Tensor& only(std::vector<at::Tensor>& tensors) {
    TORCH_CHECK(tensors.size() == 1 && tensors.front().is_contiguous() && tensors.front().is_cpu(),
                "MpiBackend: expected one contiguous tensor on the CPU");
    return tensors.front();
  }

  static int count(const at::Tensor& t) {
    TORCH_CHECK(t.numel() <= std::numeric_limits<int>::max(), "MpiBackend: at most 2^31 - 1 elements a call, got ",
                t.numel());
    return int(t.numel());
  }

  static MPI_Datatype type(const at::Tensor& t) {
    switch (t.scalar_type()) {
      case at::kFloat: return MPI_FLOAT;
      case at::kDouble: return MPI_DOUBLE;
      case at::kLong: return MPI_INT64_T;
      case at::kInt: return MPI_INT32_T;
      case at::kByte: return MPI_UINT8_T;
      default:
        TORCH_CHECK(false, "MpiBackend: carries float32, float64, int64, int32 and uint8, got ", t.scalar_type());
    }
  }

  static void check(int status, const char* call) {
    TORCH_CHECK_WITH(DistBackendError, status == MPI_SUCCESS, call, " failed with status ", status);
  }

  static c10::intrusive_ptr<c10d::Work> done(const std::vector<at::Tensor>& tensors) {
    auto future = c10::make_intrusive<c10::ivalue::Future>(c10::ListType::create(c10::TensorType::get()));
    future->markCompleted(c10::IValue(tensors));
    return c10d::Work::create_from_future(future);
  }
};

/// The processes that mpirun started, on CPUs. To be called once, before other threads begin. The group ends MPI; if an
/// exception ends it, MPI is left as it is, so that mpirun ends the other ranks when this process exits.
inline std::shared_ptr<Group> open_mpi_group() {
  int given = 0, rank = 0, world = 1;
  // The backward pass may reduce from a thread of autograd, while no other thread of this process is in MPI.
  MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &given);
  TORCH_CHECK(given >= MPI_THREAD_SERIALIZED, "open_mpi_group: this MPI cannot be called from more than one thread");
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &world);
  const auto group = c10::make_intrusive<c10d::ProcessGroup>(c10::make_intrusive<c10d::HashStore>(), rank, world);
  group->setBackend(at::kCPU, c10d::ProcessGroup::BackendType::MPI, c10::make_intrusive<MpiBackend>(rank, world));
  group->setDefaultBackend(c10d::ProcessGroup::BackendType::MPI);
  return std::make_shared<C10dGroup>(group, at::kCPU, [](bool failed) {
    if (!failed) MPI_Finalize();
  });
}

}  // namespace moecod::distributed
