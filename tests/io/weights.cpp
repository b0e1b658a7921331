// safetensors files: round trips, every way a file can be wrong, writes that fail, and loading into modules.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include <torch/torch.h>

#include "moecod/io/safetensors.hpp"
#include "moecod/io/weights.hpp"
#include "moecod/layers/conv.hpp"
#include "moecod/layers/norm.hpp"
#include "tests/error_of.hpp"

namespace {

using namespace moecod;
namespace fs = std::filesystem;

class Weights : public testing::Test {
 protected:
  void SetUp() override {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    folder_ = fs::temp_directory_path() / ("moecod_weights_" + std::to_string(::getpid()) + "_" + info->name());
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  fs::path file(const std::string& name = "state.safetensors") const { return folder_ / name; }

  /// A file of the given header and `data` bytes of zeros; `length` other than the header's own on request.
  void write_raw(const std::string& header, std::size_t data, std::int64_t length = -1) const {
    std::ofstream out(file(), std::ios::binary);
    const std::uint64_t n = length < 0 ? header.size() : static_cast<std::uint64_t>(length);
    out.write(reinterpret_cast<const char*>(&n), 8);
    out << header << std::string(data, '\0');
  }

  static std::string bytes_of(const fs::path& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }

  std::size_t files_in_folder() const {
    return static_cast<std::size_t>(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()));
  }

  fs::path folder_;
};

at::Tensor raw_bytes(const at::Tensor& tensor) {
  const at::Tensor host = tensor.contiguous();
  return at::from_blob(host.data_ptr(), {static_cast<std::int64_t>(host.nbytes())}, at::kByte).clone();
}

TEST_F(Weights, EveryTypeComesBackBitForBit) {
  StateDict state;
  for (const auto& [name, type] : io::detail::scalar_types) {
    const std::int64_t size = static_cast<std::int64_t>(c10::elementSize(type));
    at::Tensor bits = at::randint(0, 256, {3 * 5 * size}, at::kByte);
    if (type == at::kBool) bits = bits.remainder(2);
    at::Tensor value = at::empty({3, 5}, type);
    std::memcpy(value.mutable_data_ptr(), bits.const_data_ptr(), static_cast<std::size_t>(bits.numel()));
    state.emplace_back("of." + std::string(name), value);
  }
  state.emplace_back("scalar", at::tensor(7.5));
  state.emplace_back("empty", at::empty({0, 4}));
  state.emplace_back("strided", at::rand({4, 6}).t());
  io::write_state(file(), state, {{"format", "pt"}, {"note", "gr\xc3\xbc\xc3\x9f"}});

  std::map<std::string, at::Tensor> back;
  for (const auto& [name, tensor] : io::read_state(file())) back[name] = tensor;
  ASSERT_EQ(back.size(), state.size());
  for (const auto& [name, tensor] : state) {
    ASSERT_TRUE(back.count(name)) << name;
    EXPECT_EQ(back[name].sizes(), tensor.sizes()) << name;
    EXPECT_EQ(back[name].scalar_type(), tensor.scalar_type()) << name;
    EXPECT_TRUE(at::equal(raw_bytes(back[name]), raw_bytes(tensor))) << name;
  }
  EXPECT_EQ(io::SafetensorsFile(file()).metadata().at("note"), "gr\xc3\xbc\xc3\x9f");
}

TEST_F(Weights, TensorsOutliveTheirFileAndNeverWriteToIt) {
  const at::Tensor original = at::rand({64});
  io::write_state(file(), {{"a", original}});
  const std::string before = bytes_of(file());
  const at::Tensor read = io::read_state(file())[0].second;
  read.mul_(2);
  EXPECT_EQ(bytes_of(file()), before);
  io::write_state(file(), {{"a", at::zeros({64})}});
  fs::remove(file());
  EXPECT_TRUE(at::equal(read, original * 2));
}

TEST_F(Weights, UnalignedDataIsRead) {
  const std::string header = R"({"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                             R"("f":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}})";
  write_raw(header, 9);
  const auto state = io::read_state(file());
  EXPECT_TRUE(at::equal(state[1].second, at::zeros({2})));
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(state[1].second.const_data_ptr()) % 4, 0u);
}

TEST_F(Weights, EveryMalformedFileIsNamedWithItsReason) {
  const auto one = [](const std::string& body) { return "{\"t\":{" + body + "}}"; };
  const auto two = [](const std::string& a, const std::string& b) {
    const std::string head = R"({"dtype":"U8","shape":[4],"data_offsets":)";
    return "{\"s\":" + head + a + "},\"t\":" + head + b + "}}";
  };
  struct Case {
    std::string header;
    std::size_t data;
    std::string reason;
  };
  const std::string deep = "{\"t\":" + std::string(100000, '[');
  const Case cases[] = {
      {"", 0, "does not start with '{'"},
      {" {}", 0, "does not start with '{'"},
      {"{", 0, "not JSON"},
      {"{} x", 0, "not JSON"},
      {std::string("{}\0", 3), 0, "zero byte"},
      {"{\"\xff\":1}", 0, "not JSON"},
      {deep, 0, "nested too deeply"},
      {"{\"t\":3}", 0, "tensor 't' is not described by an object"},
      {"{\"__metadata__\":[]}", 0, "__metadata__ is not an object"},
      {"{\"__metadata__\":{\"a\":1}}", 0, "entry 'a' is not a string"},
      {"{\"__metadata__\":{\"a\":\"1\",\"a\":\"2\"}}", 0, "'a' appears twice"},
      {one(R"("shape":[4],"data_offsets":[0,4])"), 4, "has no dtype"},
      {one(R"("dtype":8,"shape":[4],"data_offsets":[0,4])"), 4, "has no dtype"},
      {one(R"("dtype":"F12","shape":[4],"data_offsets":[0,4])"), 4, "has dtype 'F12'"},
      {one(R"("dtype":"U8","data_offsets":[0,4])"), 4, "has no shape"},
      {one(R"("dtype":"U8","shape":[-4],"data_offsets":[0,4])"), 4, "has no shape"},
      {one(R"("dtype":"U8","shape":[4.0],"data_offsets":[0,4])"), 4, "has no shape"},
      {one(R"("dtype":"U8","shape":[99999999999999999999],"data_offsets":[0,4])"), 4, "has no shape"},
      {one(R"("dtype":"F64","shape":[4294967296,4294967296],"data_offsets":[0,4])"), 4, "more than 2^63 bytes"},
      {one(R"("dtype":"F64","shape":[9223372036854775807],"data_offsets":[0,4])"), 4, "more than 2^63 bytes"},
      {one(R"("dtype":"U8","shape":[4])"), 4, "has no data_offsets"},
      {one(R"("dtype":"U8","shape":[4],"data_offsets":[0,4,8])"), 4, "has no data_offsets"},
      {one(R"("dtype":"U8","shape":[4],"data_offsets":[4,0])"), 4, "lies at [4, 0) of 4 bytes"},
      {one(R"("dtype":"U8","shape":[4],"data_offsets":[0,4])"), 3, "lies at [0, 4) of 3 bytes"},
      {one(R"("dtype":"F32","shape":[4],"data_offsets":[0,4])"), 4, "has 4 bytes where its dtype and shape need 16"},
      {one(R"("dtype":"U8","shape":[4],"data_offsets":[0,4],"extra":1)"), 4, "unknown field 'extra'"},
      {one(R"("dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4])"), 4, "'dtype' appears twice"},
      {one(R"("dtype":"U8","shape":[4],"data_offsets":[0,4])"), 5, "1 bytes follow the last tensor"},
      {two("[0,4]", "[2,6]"), 6, "tensor 't' overlaps"},
      {two("[0,4]", "[0,4]"), 4, "overlaps"},
      {two("[0,4]", "[5,9]"), 9, "hole in the data before tensor 't'"},
      {R"({"t":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},)"
       R"("t":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})",
       0, "'t' appears twice"},
  };
  for (const Case& c : cases) {
    write_raw(c.header, c.data);
    const std::string message = test::error_of([&] { io::SafetensorsFile{file()}; });
    EXPECT_NE(message.find(c.reason), std::string::npos) << c.header.substr(0, 200) << "\n gave: " << message;
    EXPECT_NE(message.find(file().string()), std::string::npos) << message;
  }

  write_raw("{}", 0, 3);
  EXPECT_NE(test::error_of([&] { io::SafetensorsFile{file()}; }).find("the header needs 3 bytes"), std::string::npos);
  write_raw("{}", 0, INT64_MAX);
  EXPECT_NE(test::error_of([&] { io::SafetensorsFile{file()}; }).find("over the limit"), std::string::npos);
  std::ofstream(file(), std::ios::binary) << "1234567";
  EXPECT_NE(test::error_of([&] { io::SafetensorsFile{file()}; }).find("shorter than the 8 bytes"), std::string::npos);
  std::ofstream(file(), std::ios::binary) << "";
  EXPECT_NE(test::error_of([&] { io::SafetensorsFile{file()}; }).find("shorter than the 8 bytes"), std::string::npos);
  EXPECT_NE(test::error_of([&] { io::SafetensorsFile{folder_}; }).find("not a regular file"), std::string::npos);
  EXPECT_NE(test::error_of([&] { io::SafetensorsFile{file("none")}; }).find("No such file"), std::string::npos);

  const std::string header = one(R"("dtype":"BOOL","shape":[1],"data_offsets":[0,1])");
  write_raw(header, 0);
  std::ofstream(file(), std::ios::binary | std::ios::app) << '\2';
  EXPECT_NE(test::error_of([&] { io::SafetensorsFile{file()}; }).find("BOOL that is neither"), std::string::npos);
}

TEST_F(Weights, EveryTruncationIsRefused) {
  io::write_state(file(), {{"a", at::rand({3})}, {"b", at::ones({2}, at::kLong)}}, {{"k", "v"}});
  const std::string whole = bytes_of(file());
  for (std::size_t n = 0; n < whole.size(); ++n) {
    std::ofstream(file(), std::ios::binary) << whole.substr(0, n);
    EXPECT_THROW(io::SafetensorsFile{file()}, std::runtime_error) << n << " of " << whole.size() << " bytes";
  }
}

TEST_F(Weights, RefusedWritesNameTheReasonAndLeaveTheOldFile) {
  io::write_state(file(), {{"a", at::rand({4})}});
  const std::string before = bytes_of(file());
  const at::Tensor t = at::rand({2});
  EXPECT_NE(test::error_of([&] { io::write_state(file(), {{"a", t}, {"a", t}}); }).find("given twice"), std::string::npos);
  EXPECT_NE(test::error_of([&] { io::write_state(file(), {{"__metadata__", t}}); }).find("reserved"), std::string::npos);
  EXPECT_NE(test::error_of([&] { io::write_state(file(), {{"\xff", t}}); }).find("not UTF-8"), std::string::npos);
  EXPECT_NE(test::error_of([&] { io::write_state(file(), {{"a", at::Tensor()}}); }).find("undefined"), std::string::npos);
  EXPECT_NE(test::error_of([&] { io::write_state(file(), {{"a", t.to(at::kComplexDouble)}}); }).find("cannot hold"),
            std::string::npos);
  EXPECT_NE(test::error_of([&] { io::write_state(file("none/x"), {{"a", t}}); }).find("No such file"), std::string::npos);

  // A limit on file sizes stands for a full disk: write() fails half-way.
  rlimit old{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{4096, old.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const std::string message = test::error_of([&] { io::write_state(file(), {{"a", at::rand({100000})}}); });
  setrlimit(RLIMIT_FSIZE, &old);
  std::signal(SIGXFSZ, handler);
  EXPECT_NE(message.find(file().string() + ": File too large"), std::string::npos) << message;
  EXPECT_EQ(bytes_of(file()), before);
  EXPECT_EQ(files_in_folder(), 1u) << "a temporary file was left";
}

TEST_F(Weights, PickledFilesAreReadThroughTheirConversion) {
  const std::string message = test::error_of([&] { io::read_state(file("net.pth")); });
  EXPECT_NE(message.find("torch.load"), std::string::npos);
  EXPECT_NE(message.find("save_file"), std::string::npos);
  io::write_state(file("net.safetensors"), {{"a", at::ones({1})}});
  EXPECT_EQ(io::read_state(file("net.pth"))[0].first, "a");
}

struct Small : torch::nn::Module {
  Small()
      : conv(register_module("conv", std::make_shared<layers::Conv2d<>>(layers::Conv2dOptions::square(2, 3, 3)))),
        norm(register_module("norm", std::make_shared<layers::BatchNorm2d<>>(3))) {}
  std::shared_ptr<layers::Conv2d<>> conv;
  std::shared_ptr<layers::BatchNorm2d<>> norm;
};

struct StackedSmall : torch::nn::Module, StackedStorage {
  StackedSmall() {
    register_module("all", std::make_shared<layers::Conv2d<layers::Stacked>>(layers::Conv2dOptions::square(2, 3, 3),
                                                                             layers::Stacked{4}));
  }
  std::int64_t stack_size() const override { return 4; }
};

bool equal_states(const StateDict& a, const StateDict& b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i)
    if (a[i].first != b[i].first || !at::equal(a[i].second, b[i].second)) return false;
  return true;
}

TEST_F(Weights, AModuleComesBackWhole) {
  Small a, b;
  a.norm->running_mean.uniform_();
  a.norm->num_batches_tracked.fill_(41);
  io::write_state(file(), state_dict(a));
  const auto report = io::load_state(b, io::read_state(file()));
  EXPECT_EQ(report.loaded.size(), 7u);
  EXPECT_TRUE(equal_states(state_dict(a), state_dict(b)));
}

TEST_F(Weights, AllMisfitsAreListedAtOnceAndNothingIsLoaded) {
  Small module;
  StateDict state;
  for (const auto& [name, tensor] : state_dict(module)) state.emplace_back(name, at::ones_like(tensor.detach()));
  state[0].second = at::ones({3, 2, 5, 5});                       // conv.weight
  state[1].first = "conv.offset";                                 // conv.bias
  state.back().second = state.back().second.to(at::kFloat);       // norm.num_batches_tracked
  const at::Tensor before = module.norm->running_mean.clone();
  const std::string message = test::error_of([&] { io::load_state(module, state); });
  for (const char* part : {"4 keys", "misshapen: conv.weight", "[3, 2, 3, 3] here", "[3, 2, 5, 5] in the file",
                           "unknown: conv.offset", "missing: conv.bias", "misshapen: norm.num_batches_tracked"})
    EXPECT_NE(message.find(part), std::string::npos) << part << " in " << message;
  EXPECT_TRUE(at::equal(module.norm->running_mean, before));
}

TEST_F(Weights, PartsLoadByPrefixAndReport) {
  Small source, target;
  StateDict state;
  for (const auto& [name, tensor] : state_dict(source)) state.emplace_back("encoder." + name, tensor);
  state.emplace_back("head.weight", at::ones({1}));
  EXPECT_TRUE(io::load_state(target, state, {.prefix = "encoder."}).unknown.empty());
  EXPECT_TRUE(equal_states(state_dict(source), state_dict(target)));

  const auto drop_norm = [](const std::string& key) -> std::optional<std::string> {
    if (key.starts_with("norm")) return std::nullopt;
    return key;
  };
  const auto part = io::load_state(target, state, {.prefix = "encoder.", .rename = drop_norm, .partial = true});
  EXPECT_EQ(part.loaded, (std::vector<std::string>{"conv.weight", "conv.bias"}));
  EXPECT_EQ(part.missing.size(), 5u);
  EXPECT_EQ(part.ignored.size(), 5u);

  const auto norm_is_optional = [](const std::string& name) { return name.starts_with("norm"); };
  for (auto& [name, tensor] : state)
    if (name == "encoder.norm.weight") tensor = at::ones({9});
  const auto optional = io::load_state(target, state, {.prefix = "encoder.", .optional = norm_is_optional});
  EXPECT_EQ(optional.misshapen, std::vector<std::string>{"norm.weight"});
  EXPECT_EQ(optional.loaded.size(), 6u);
}

TEST_F(Weights, AnExpertTrainedAloneLoadsIntoAStackAndBack) {
  StackedSmall stack;
  layers::Conv2d<> alone(layers::Conv2dOptions::square(2, 3, 3));
  StateDict third;
  for (const auto& [name, tensor] : state_dict(alone)) third.emplace_back("2." + name, tensor);
  const auto report = io::load_state(stack, third, {.partial = true});
  EXPECT_EQ(report.loaded.size(), 2u);
  EXPECT_EQ(report.missing.size(), 6u);
  const auto all = stack.parameters()[0];
  EXPECT_TRUE(at::equal(all[2], alone.weight));
  EXPECT_EQ(all[1].abs().sum().item<float>(), 0.f);

  layers::Conv2d<> again(layers::Conv2dOptions::square(2, 3, 3));
  io::load_state(again, state_dict(stack), {.prefix = "2."});
  EXPECT_TRUE(at::equal(again.weight, alone.weight));
}

}  // namespace
