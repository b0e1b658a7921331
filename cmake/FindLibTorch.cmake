# Finds LibTorch and makes the imported target LibTorch::torch.
#
# Looks, in this order, in CMAKE_PREFIX_PATH, in the project's .venv, and in the python3 on PATH (a PyPI wheel is
# a complete LibTorch). It does not use TorchConfig.cmake, which demands a CUDA toolkit of the wheel's own version
# even for a CPU build.
#
# Variables set: LibTorch_FOUND, LibTorch_VERSION, LibTorch_ROOT (the folder with include/ and lib/).

set(_candidates ${CMAKE_PREFIX_PATH})
file(GLOB _venv "${CMAKE_CURRENT_LIST_DIR}/../.venv/lib/python3*/site-packages/torch")
list(APPEND _candidates ${_venv})
foreach(_dir IN LISTS _candidates)
  if(EXISTS "${_dir}/include/torch/csrc/api/include/torch/torch.h")
    set(LibTorch_ROOT "${_dir}")
    break()
  endif()
endforeach()
if(NOT LibTorch_ROOT)
  find_program(_python3 python3)
  if(_python3)
    execute_process(COMMAND "${_python3}" -c "import torch; print(torch.__path__[0])"
                    OUTPUT_VARIABLE _dir OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    if(EXISTS "${_dir}/include/torch/csrc/api/include/torch/torch.h")
      set(LibTorch_ROOT "${_dir}")
    endif()
  endif()
endif()

if(LibTorch_ROOT)
  set(_version_header "${LibTorch_ROOT}/include/torch/headeronly/version.h")
  if(NOT EXISTS "${_version_header}")
    set(_version_header "${LibTorch_ROOT}/include/torch/csrc/api/include/torch/version.h")
  endif()
  file(STRINGS "${_version_header}" _lines REGEX "#define TORCH_VERSION_(MAJOR|MINOR|PATCH)")
  foreach(_part MAJOR MINOR PATCH)
    string(REGEX MATCH "TORCH_VERSION_${_part} ([0-9]+)" _ "${_lines}")
    set(_${_part} "${CMAKE_MATCH_1}")
  endforeach()
  set(LibTorch_VERSION "${_MAJOR}.${_MINOR}.${_PATCH}")
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(LibTorch REQUIRED_VARS LibTorch_ROOT VERSION_VAR LibTorch_VERSION
  REASON_FAILURE_MESSAGE "pip install torch==2.11.0 into .venv, or pass -DCMAKE_PREFIX_PATH=<folder of libtorch>")

if(LibTorch_FOUND AND NOT TARGET LibTorch::torch)
  foreach(_lib c10 torch_cpu torch)
    add_library(LibTorch::${_lib}_library SHARED IMPORTED)
    set_target_properties(LibTorch::${_lib}_library PROPERTIES
      IMPORTED_LOCATION "${LibTorch_ROOT}/lib/lib${_lib}.so" IMPORTED_NO_SONAME FALSE)
  endforeach()
  add_library(LibTorch::torch INTERFACE IMPORTED)
  target_include_directories(LibTorch::torch SYSTEM INTERFACE
    "${LibTorch_ROOT}/include" "${LibTorch_ROOT}/include/torch/csrc/api/include")
  target_link_libraries(LibTorch::torch INTERFACE
    # The wheel exports parts of an older std::filesystem; the system's must come first.
    stdc++ LibTorch::torch_library LibTorch::torch_cpu_library LibTorch::c10_library)
  # The CUDA wheel's libtorch_cpu finds its NVIDIA libraries by its own RUNPATH; the linker need not.
  target_link_options(LibTorch::torch INTERFACE "LINKER:--allow-shlib-undefined")
  if(MOECOD_WITH_CUDA)
    find_package(CUDAToolkit REQUIRED)
    foreach(_lib c10_cuda torch_cuda)
      add_library(LibTorch::${_lib}_library SHARED IMPORTED)
      set_target_properties(LibTorch::${_lib}_library PROPERTIES
        IMPORTED_LOCATION "${LibTorch_ROOT}/lib/lib${_lib}.so")
    endforeach()
    target_include_directories(LibTorch::torch SYSTEM INTERFACE ${CUDAToolkit_INCLUDE_DIRS})
    # libtorch_cuda registers its kernels when loaded; no symbol of ours refers to it.
    target_link_options(LibTorch::torch INTERFACE
      "LINKER:--no-as-needed,${LibTorch_ROOT}/lib/libtorch_cuda.so,${LibTorch_ROOT}/lib/libc10_cuda.so,--as-needed")
  endif()
endif()
