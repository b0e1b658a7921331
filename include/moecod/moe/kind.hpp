#pragma once

/// What a policy decides. Every policy names its kind as `policy_kind`; swap_t replaces by kind.
namespace moecod::kind {
struct router {};
struct experts {};
struct select {};
struct balance {};
struct dispatch {};
struct backbone {};
}  // namespace moecod::kind
