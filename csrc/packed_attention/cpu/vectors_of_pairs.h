// Products of pairs of bfloat16 by AVX-512, two numbers of each lane at once.
#pragma once

namespace tokendetr::TOKENDETR_ISA::packed {

struct AddPairs {
  TOKENDETR_INLINE Vec<float> operator()(Vec<float> sum, Vec<float> left, Vec<float> right) const {
    return reinterpret_cast<Vec<float>>(_mm512_dpbf16_ps(
        reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(left), reinterpret_cast<__m512bh>(right)));
  }
};

struct VectorsOfPairs {
  TOKENDETR_INLINE void multiply(const PairsLeft& left, const PairsRight& right, int64_t rows, int64_t columns,
                                 int64_t depth, const BlockRows<float>& product) const {
    __asm__ volatile("" ::: "memory");  // what is loaded has been stored, as numbers of another type
    packed::multiply<float>({reinterpret_cast<const float*>(left.data), left.row / 2, 1},
                            {reinterpret_cast<const float*>(right.data), right.row}, rows, (depth + 1) / 2,
                            whole_vectors<float>(columns), StoreRows<float>{product.data, product.length}, AddPairs{});
  }
};

}  // namespace tokendetr::TOKENDETR_ISA::packed
