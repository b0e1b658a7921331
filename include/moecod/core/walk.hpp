#pragma once
#include <torch/nn/module.h>

#include <string>

namespace moecod {

/// Calls f(name, module) for a module (named "") and everything below it, parents first. Unlike Module::apply and
/// Module::named_modules it also takes a module that lies on the stack.
template <class Module, class F>
void for_each_module(Module& module, F&& f, const std::string& prefix = "") {
  f(prefix, module);
  for (const auto& child : module.named_children())
    for_each_module(*child.value(), f, prefix.empty() ? child.key() : prefix + "." + child.key());
}

}  // namespace moecod
