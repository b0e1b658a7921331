#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <torch/nn/module.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "moecod/core/state.hpp"
#include "moecod/io/safetensors.hpp"

namespace moecod::io {

namespace detail {

inline constexpr std::array<std::pair<std::string_view, at::ScalarType>, 19> scalar_types{{
    {"F64", at::kDouble},
    {"F32", at::kFloat},
    {"F16", at::kHalf},
    {"BF16", at::kBFloat16},
    {"I64", at::kLong},
    {"I32", at::kInt},
    {"I16", at::kShort},
    {"I8", at::kChar},
    {"U64", at::kUInt64},
    {"U32", at::kUInt32},
    {"U16", at::kUInt16},
    {"U8", at::kByte},
    {"BOOL", at::kBool},
    {"C64", at::kComplexFloat},
    {"F8_E4M3", at::kFloat8_e4m3fn},
    {"F8_E5M2", at::kFloat8_e5m2},
    {"F8_E4M3FNUZ", at::kFloat8_e4m3fnuz},
    {"F8_E5M2FNUZ", at::kFloat8_e5m2fnuz},
    {"F8_E8M0", at::kFloat8_e8m0fnu},
}};

inline at::ScalarType scalar_type(std::string_view dtype) {
  for (const auto& [name, type] : scalar_types)
    if (name == dtype) return type;
  TORCH_CHECK(false, "safetensors dtype ", std::string(dtype), " has no tensor type");
}

inline std::string safetensors_dtype(const std::string& name, at::ScalarType type) {
  for (const auto& [dtype, candidate] : scalar_types)
    if (candidate == type) return std::string(dtype);
  TORCH_CHECK(false, "write_state: tensor '", name, "' is ", c10::toString(type), ", which safetensors cannot hold");
}

/// The file to read for `path`: a PyTorch file stands for the .safetensors file beside it.
inline std::filesystem::path weights_file(const std::filesystem::path& path) {
  if (path.extension() != ".pth" && path.extension() != ".pt") return path;
  std::filesystem::path converted = path;
  converted.replace_extension(".safetensors");
  TORCH_CHECK(std::filesystem::exists(converted), "read_state: ", path.string(),
              " is a Python pickle, which is not read here. Convert it once:\n  python3 -c \"import torch, "
              "safetensors.torch as s; d = torch.load('", path.string(),
              "', map_location='cpu', weights_only=True); d = d.get('state_dict', d.get('model', d)); "
              "s.save_file({k: v.clone().contiguous() for k, v in d.items()}, '", converted.string(), "')\"");
  return converted;
}

}  // namespace detail

/// Reads named tensors from a safetensors file, in the order of their data.
///
/// The tensors lie in the mapped file, which they keep alive, and are on the CPU. Writing to one changes memory only.
/// For FILE.pth or FILE.pt the file FILE.safetensors is read.
/// Errors: c10::Error with the Python line that converts a .pth file, when it has not been converted;
/// std::runtime_error naming the file and what is wrong with it.
inline StateDict read_state(const std::filesystem::path& path) {
  const SafetensorsFile file(detail::weights_file(path));
  StateDict out;
  for (const TensorRecord& tensor : file.tensors()) {
    const auto options = at::TensorOptions(detail::scalar_type(tensor.dtype));
    const bool aligned =
        reinterpret_cast<std::uintptr_t>(tensor.bytes.data()) % safetensors::element_size(tensor.dtype) == 0;
    at::Tensor value;
    if (aligned && !tensor.bytes.empty()) {
      value = at::from_blob(tensor.bytes.data(), tensor.shape, [mapping = file.mapping()](void*) {}, options);
    } else {
      value = at::empty(tensor.shape, options);
      if (!tensor.bytes.empty()) std::memcpy(value.mutable_data_ptr(), tensor.bytes.data(), tensor.bytes.size());
    }
    out.emplace_back(tensor.name, std::move(value));
  }
  return out;
}

/// Writes named tensors to a safetensors file in one step; the old file stays if anything fails.
/// Synchronises: copies tensors of a device to the host.
/// Errors: c10::Error for a tensor type that the format does not have; std::runtime_error naming the file.
inline void write_state(const std::filesystem::path& path, const StateDict& state, const Metadata& metadata = {}) {
  std::vector<at::Tensor> owned;
  std::vector<TensorRecord> records;
  for (const auto& [name, tensor] : state) {
    TORCH_CHECK(tensor.defined(), "write_state: tensor '", name, "' is undefined");
    owned.push_back(tensor.detach().resolve_conj().resolve_neg().to(at::kCPU).contiguous());
    const at::Tensor& host = owned.back();
    records.push_back({name, detail::safetensors_dtype(name, host.scalar_type()), host.sizes().vec(),
                       {static_cast<std::byte*>(host.data_ptr()), host.nbytes()}});
  }
  write_safetensors(path, std::move(records), metadata);
}

/// How load_state reads a state.
struct LoadOptions {
  /// Only keys that start with this are looked at; it is taken off them. Empty: all keys.
  std::string prefix = {};
  /// The module's name for a key of the file, after the prefix; std::nullopt ignores the key knowingly.
  std::function<std::optional<std::string>(const std::string& key)> rename = {};
  /// Load what is there: missing and unknown keys are reported and are no errors.
  bool partial = false;
  /// Names that may be missing, unknown or of another shape: those are reported and the module keeps its values.
  std::function<bool(const std::string& name)> optional = {};
};

/// What load_state did, by names of the module; `unknown` and `ignored` by keys of the file.
struct LoadReport {
  std::vector<std::string> loaded, missing, unknown, misshapen, ignored;
};

/// Copies a state into the parameters and buffers of a module, by the names of moecod::state_dict.
///
/// Strict unless the options say otherwise. All keys are checked before the first is copied, so that an error leaves
/// the module as it was. Tensors are converted to the module's device and, among floating-point or among integral
/// types, to its type. For stacked experts a key names one expert, so experts trained alone load into a stack.
/// Errors: one c10::Error that lists every unknown, missing and misshapen key.
inline LoadReport load_state(torch::nn::Module& module, const StateDict& state, const LoadOptions& options = {}) {
  const StateDict own = state_dict(module);
  std::unordered_map<std::string, std::size_t> index;
  for (std::size_t i = 0; i < own.size(); ++i) index.emplace(own[i].first, i);

  std::vector<const at::Tensor*> source(own.size(), nullptr);
  std::vector<bool> named(own.size(), false);
  LoadReport report;
  std::vector<std::string> errors;
  const auto is_optional = [&](const std::string& name) { return options.optional && options.optional(name); };
  for (const auto& [key, tensor] : state) {
    if (!key.starts_with(options.prefix)) continue;
    std::optional<std::string> name = key.substr(options.prefix.size());
    if (options.rename) name = options.rename(*name);
    if (!name) {
      report.ignored.push_back(key);
      continue;
    }
    const auto found = index.find(*name);
    if (found == index.end()) {
      report.unknown.push_back(key);
      if (!options.partial && !is_optional(*name)) errors.push_back("unknown: " + key);
      continue;
    }
    if (named[found->second]) {
      errors.push_back("twice: " + *name + ", the second time from " + key);
      continue;
    }
    named[found->second] = true;
    const at::Tensor& target = own[found->second].second;
    const bool same_kind = tensor.is_floating_point() == target.is_floating_point() &&
                           tensor.is_complex() == target.is_complex();
    if (tensor.sizes() == target.sizes() && same_kind) {
      source[found->second] = &tensor;
      continue;
    }
    report.misshapen.push_back(*name);
    if (!is_optional(*name))
      errors.push_back("misshapen: " + *name + ", " + c10::str(target.scalar_type(), " ", target.sizes()) +
                       " here, " + c10::str(tensor.scalar_type(), " ", tensor.sizes()) + " in the file");
  }
  for (std::size_t i = 0; i < own.size(); ++i) {
    if (named[i]) continue;
    report.missing.push_back(own[i].first);
    if (!options.partial && !is_optional(own[i].first)) errors.push_back("missing: " + own[i].first);
  }
  if (!errors.empty()) {
    std::string list;
    for (const std::string& error : errors) list += "\n  " + error;
    TORCH_CHECK(false, "load_state: ", errors.size(), " keys do not fit", list);
  }
  torch::NoGradGuard no_grad;
  for (std::size_t i = 0; i < own.size(); ++i) {
    if (source[i] == nullptr) continue;
    at::Tensor target = own[i].second;
    target.copy_(*source[i]);
    report.loaded.push_back(own[i].first);
  }
  return report;
}

}  // namespace moecod::io
