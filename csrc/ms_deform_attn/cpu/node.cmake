# What a library of the node tokendetr::MSDeformAttn is built from beside the runtime's own part (see node.h).
set(CMAKE_CXX_STANDARD 17)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()
set(NODE_SOURCES
  ${CMAKE_CURRENT_LIST_DIR}/../../common/isa.cpp
  ${CMAKE_CURRENT_LIST_DIR}/dispatch.cpp
  ${CMAKE_CURRENT_LIST_DIR}/kernels_portable.cpp
  ${CMAKE_CURRENT_LIST_DIR}/kernels_avx2.cpp
  ${CMAKE_CURRENT_LIST_DIR}/kernels_avx512.cpp)
set(NODE_OPTIONS -O3 -ffp-contract=fast -Wall -Wno-psabi -fvisibility=hidden)
