// Begins code that is compiled for any processor, see begin_avx512.h.
#pragma once

#include "system_headers.h"

#define TOKENDETR_ISA portable
#define TOKENDETR_VECTOR_BYTES 16
