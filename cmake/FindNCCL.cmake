# Finds NCCL's header and makes NCCL::headers. The library itself is part of LibTorch's CUDA wheel, whose libtorch_cuda loads
# it. Looks beside LibTorch (the wheel nvidia-nccl), in CMAKE_PREFIX_PATH and in the system.
find_path(NCCL_INCLUDE_DIR nccl.h HINTS "${LibTorch_ROOT}/../nvidia/nccl/include")
mark_as_advanced(NCCL_INCLUDE_DIR)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(NCCL REQUIRED_VARS NCCL_INCLUDE_DIR
  REASON_FAILURE_MESSAGE "pip install nvidia-nccl-cu13 beside torch, or install libnccl-dev")
if(NCCL_FOUND AND NOT TARGET NCCL::headers)
  add_library(NCCL::headers INTERFACE IMPORTED)
  target_include_directories(NCCL::headers SYSTEM INTERFACE "${NCCL_INCLUDE_DIR}")
  target_compile_definitions(NCCL::headers INTERFACE USE_C10D_NCCL)
endif()
