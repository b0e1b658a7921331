# Finds the three OpenCV libraries that read and write image files and makes OpenCVImages::OpenCVImages.
#
# Debian keeps OpenCVConfig.cmake in libopencv-dev, which pulls in every module with its dependencies; the three
# small -dev packages that moecod needs come without it. So: headers and libraries, by name.

find_path(OpenCVImages_INCLUDE_DIR opencv2/imgcodecs.hpp PATH_SUFFIXES opencv4)
set(_libraries "")
foreach(_module core imgproc imgcodecs)
  find_library(OpenCVImages_${_module}_LIBRARY opencv_${_module})
  mark_as_advanced(OpenCVImages_${_module}_LIBRARY)
  list(APPEND _libraries OpenCVImages_${_module}_LIBRARY)
endforeach()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(OpenCVImages REQUIRED_VARS OpenCVImages_INCLUDE_DIR ${_libraries}
  REASON_FAILURE_MESSAGE "apt-get install libopencv-imgcodecs-dev libopencv-imgproc-dev libopencv-core-dev, or configure with -DMOECOD_WITH_OPENCV=OFF to work from packed data only")

if(OpenCVImages_FOUND AND NOT TARGET OpenCVImages::OpenCVImages)
  add_library(OpenCVImages::OpenCVImages INTERFACE IMPORTED)
  target_include_directories(OpenCVImages::OpenCVImages SYSTEM INTERFACE "${OpenCVImages_INCLUDE_DIR}")
  target_link_libraries(OpenCVImages::OpenCVImages INTERFACE "${OpenCVImages_imgcodecs_LIBRARY}"
    "${OpenCVImages_imgproc_LIBRARY}" "${OpenCVImages_core_LIBRARY}")
endif()
