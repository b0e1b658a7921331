// The ranks of one job run the same tests in the same order: on CPUs under mpirun, on GPUs under torchrun.
#include <ATen/Context.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdio>
#include <exception>

#include "moecod/distributed/open.hpp"
#include "tests/distributed/job.hpp"

namespace moecod::test {

Job& job() {
  static Job job;
  return job;
}

}  // namespace moecod::test

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  using namespace moecod;
  // Float32 as it says: what ranks are compared with to 1e-5 would differ by more in TF32, cuDNN's default.
  at::globalContext().setAllowTF32CuDNN(false);
  at::globalContext().setAllowTF32CuBLAS(false);
  at::globalContext().setDeterministicCuDNN(true);
  try {
    const auto ranks = distributed::Ranks::from_environment();
    TORCH_CHECK(ranks, "start this under mpirun or torchrun");
    const bool cuda = ranks->launcher == distributed::Ranks::Launcher::torchrun;
    test::job().device = cuda ? at::Device(at::kCUDA, c10::DeviceIndex(ranks->local_rank)) : at::Device(at::kCPU);
    test::job().group = distributed::open_group(*ranks, test::job().device.type(), std::chrono::seconds(60));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "test_distributed: %s\n", error.what());
    return 1;
  }
  if (test::job().group->rank() > 0) {
    // One rank reports; the others tell of failures only.
    auto& listeners = testing::UnitTest::GetInstance()->listeners();
    struct Failures : testing::EmptyTestEventListener {
      void OnTestPartResult(const testing::TestPartResult& result) override {
        if (result.failed())
          std::fprintf(stderr, "rank %d: %s:%d: %s\n", int(test::job().group->rank()), result.file_name(),
                       result.line_number(), result.summary());
      }
    };
    delete listeners.Release(listeners.default_result_printer());
    listeners.Append(new Failures);
  }
  const int status = RUN_ALL_TESTS();
  test::job().group.reset();
  return status;
}
