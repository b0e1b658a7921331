# moecod_program(NAME SOURCE... [TORCH_FREE] [OPENCV] [QUICK]): an executable with the project's warnings, the shared
# precompiled header and the sanitizers of the preset; moecod_object: the same for objects to be linked into one.
# TORCH_FREE ones link neither LibTorch nor its header. QUICK ones are compiled with -O1, which halves their time: for what
# only calls LibTorch, as tests do.

add_library(moecod_strict INTERFACE)
target_compile_options(moecod_strict INTERFACE -Wall -Wextra -Werror -Wno-unknown-pragmas
                                                 -Wno-missing-field-initializers)
if(MOECOD_SANITIZE)
  # GCC sees uninitialised values in instrumented code where there are none.
  target_compile_options(moecod_strict INTERFACE -fsanitize=${MOECOD_SANITIZE} -fno-omit-frame-pointer
                                                 -fno-sanitize-recover=all -Wno-maybe-uninitialized)
  target_link_options(moecod_strict INTERFACE -fsanitize=${MOECOD_SANITIZE})
endif()

if(MOECOD_BUILD_TESTS OR MOECOD_BUILD_EXAMPLES OR MOECOD_BUILD_BENCH)
  find_package(Threads REQUIRED)
  find_package(CLI11 REQUIRED)
  find_package(nlohmann_json REQUIRED)
  file(CONFIGURE OUTPUT "${CMAKE_BINARY_DIR}/pch.cpp" CONTENT "// Carries the precompiled header.\n")
  foreach(_pch IN ITEMS moecod_pch moecod_pch_quick)
    add_library(${_pch} OBJECT "${CMAKE_BINARY_DIR}/pch.cpp")
    target_link_libraries(${_pch} PRIVATE moecod moecod_strict)
    target_precompile_headers(${_pch} PRIVATE "${PROJECT_SOURCE_DIR}/cmake/pch.hpp")
  endforeach()
  target_compile_options(moecod_pch_quick PRIVATE -O1)
  set_target_properties(moecod_pch_quick PROPERTIES EXCLUDE_FROM_ALL ON)  # built where something needs it
endif()

function(moecod_settings name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "TORCH_FREE;OPENCV;QUICK" "" "")
  target_link_libraries(${name} PRIVATE moecod_strict Threads::Threads CLI11::CLI11 nlohmann_json::nlohmann_json)
  target_include_directories(${name} PRIVATE "${PROJECT_SOURCE_DIR}/include" "${PROJECT_SOURCE_DIR}")
  if(arg_OPENCV AND MOECOD_WITH_OPENCV)
    target_link_libraries(${name} PRIVATE OpenCVImages::OpenCVImages)
    target_compile_definitions(${name} PRIVATE MOECOD_WITH_OPENCV)
  endif()
  set(_pch moecod_pch)
  if(arg_QUICK)
    set(_pch moecod_pch_quick)
    target_compile_options(${name} PRIVATE -O1)
  endif()
  if(NOT arg_TORCH_FREE)
    target_link_libraries(${name} PRIVATE moecod)
    target_precompile_headers(${name} REUSE_FROM ${_pch})
    if(MOECOD_WITH_CUDA)
      target_compile_definitions(${name} PRIVATE MOECOD_WITH_CUDA)
      target_link_libraries(${name} PRIVATE CUDA::cudart)
    endif()
  endif()
endfunction()

function(moecod_program name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "TORCH_FREE;OPENCV;QUICK" "" "")
  add_executable(${name} ${arg_UNPARSED_ARGUMENTS})
  moecod_settings(${ARGV})
  if(NOT arg_TORCH_FREE)
    target_link_libraries(${name} PRIVATE moecod_any_backbone)
    if(MOECOD_WITH_CUDA_KERNELS)
      target_link_libraries(${name} PRIVATE moecod_cuda)
    endif()
  endif()
endfunction()

function(moecod_object name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "TORCH_FREE;OPENCV;QUICK" "" "")
  add_library(${name} OBJECT ${arg_UNPARSED_ARGUMENTS})
  moecod_settings(${ARGV})
endfunction()

# Joining processes, compiled once for the programs that do.
if(TARGET moecod_pch)
  file(CONFIGURE OUTPUT "${CMAKE_BINARY_DIR}/open_group.cpp" CONTENT "#include \"moecod/distributed/open.ipp\"\n")
  add_library(moecod_open_group STATIC EXCLUDE_FROM_ALL "${CMAKE_BINARY_DIR}/open_group.cpp")
  target_link_libraries(moecod_open_group PRIVATE moecod_distributed moecod_strict)
endif()

# The backbones that backbone::Any can name, compiled once for all programs.
if(TARGET moecod_pch)
  file(CONFIGURE OUTPUT "${CMAKE_BINARY_DIR}/any_backbone.cpp" CONTENT "#include \"moecod/backbone/any.ipp\"\n")
  add_library(moecod_any_backbone STATIC EXCLUDE_FROM_ALL "${CMAKE_BINARY_DIR}/any_backbone.cpp")
  moecod_settings(moecod_any_backbone)
endif()
