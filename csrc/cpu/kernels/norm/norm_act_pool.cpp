#include "norm_act_pool.h"

#include "norm_act_pooled.h"
#include "norm_act_unpooled.h"

namespace metasparse::cpu::METASPARSE_ISA {
namespace {

int64_t scratch_size(const NormActPoolShape& s) {
  return s.pool ? pooled::scratch_size(s) : unpooled::scratch_size(s);
}

template <class T>
void forward(const NormActPoolShape& s, const NormActPoolForward<T>& job, T* scratch) {
  return s.pool ? pooled::forward(s, job, scratch) : unpooled::forward(s, job, scratch);
}

template <class T, class Derivative>
void differentiate(const NormActPoolShape& s, const Derivative& derivative, T* scratch) {
  return s.pool ? pooled::differentiate(s, derivative, scratch)
                : unpooled::differentiate(s, derivative, scratch);
}

template <class T>
void backward(const NormActPoolShape& s, const NormActPoolBackward<T>& job, T* scratch) {
  differentiate(s, Backward<T>{job}, scratch);
}

template <class T>
void tangent(const NormActPoolShape& s, const NormActPoolTangent<T>& job, T* scratch) {
  differentiate(s, Tangent<T>{job}, scratch);
}

template <class T>
void double_backward(const NormActPoolShape& s, const NormActPoolDoubleBackward<T>& job,
                     T* scratch) {
  differentiate(s, DoubleBackward<T>{job}, scratch);
}

}  // namespace

extern const NormActPoolKernels<float> norm_act_pool_float = {
    scratch_size, forward<float>, backward<float>, tangent<float>, double_backward<float>};
extern const NormActPoolKernels<double> norm_act_pool_double = {
    scratch_size, forward<double>, backward<double>, tangent<double>, double_backward<double>};

}  // namespace metasparse::cpu::METASPARSE_ISA
