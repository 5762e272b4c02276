// Ends what begin_avx2.h or begin_avx512.h started.
#if defined(__clang__)
#pragma clang attribute pop
#endif
