install(TARGETS moecod moecod_distributed EXPORT moecodTargets)
if(TARGET moecod_opencv)
  install(TARGETS moecod_opencv EXPORT moecodTargets)
endif()
if(TARGET moecod_cuda)
  install(TARGETS moecod_cuda EXPORT moecodTargets LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
endif()
install(DIRECTORY include/moecod DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
set(_config_dir "${CMAKE_INSTALL_LIBDIR}/cmake/moecod")
install(EXPORT moecodTargets NAMESPACE moecod:: DESTINATION ${_config_dir})
configure_package_config_file(cmake/moecodConfig.cmake.in "${CMAKE_BINARY_DIR}/moecodConfig.cmake"
  INSTALL_DESTINATION ${_config_dir})
write_basic_package_version_file("${CMAKE_BINARY_DIR}/moecodConfigVersion.cmake" COMPATIBILITY SameMinorVersion
                                 ARCH_INDEPENDENT)
install(FILES "${CMAKE_BINARY_DIR}/moecodConfig.cmake" "${CMAKE_BINARY_DIR}/moecodConfigVersion.cmake"
              cmake/FindLibTorch.cmake cmake/FindOpenCVImages.cmake cmake/FindNCCL.cmake DESTINATION ${_config_dir})
