# moecod::distributed: what the headers of moecod/distributed need to join processes. On CPUs MPI, where it is found; on GPUs
# NCCL's header (the library is in LibTorch), with MOECOD_WITH_CUDA.
option(MOECOD_WITH_MPI "Join processes on CPUs by MPI, where it is found" ON)

add_library(moecod_distributed INTERFACE)
add_library(moecod::distributed ALIAS moecod_distributed)
set_target_properties(moecod_distributed PROPERTIES EXPORT_NAME distributed)
target_link_libraries(moecod_distributed INTERFACE moecod)

if(MOECOD_WITH_MPI)
  set(MPI_CXX_SKIP_MPICXX ON)
  find_package(MPI QUIET COMPONENTS CXX)
  if(MPI_CXX_FOUND)
    target_link_libraries(moecod_distributed INTERFACE MPI::MPI_CXX)
    target_compile_definitions(moecod_distributed INTERFACE MOECOD_WITH_MPI)
  else()
    message(STATUS "MPI was not found: trainers will not run as several processes on CPUs, nor will the tests of that")
  endif()
endif()

if(MOECOD_WITH_CUDA)
  find_package(NCCL REQUIRED)
  target_link_libraries(moecod_distributed INTERFACE NCCL::headers)
endif()
