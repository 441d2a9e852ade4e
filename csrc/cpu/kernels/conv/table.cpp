// The table of one instruction set, from those of the files beside this one.
#include "../vec.h"
#include "tables.h"

namespace metasparse::cpu::METASPARSE_ISA {

template <class T>
const SparseKernels<T>& sparse_kernels();
template <class T>
const DenseKernels<T>& dense_kernels();
template <class T>
const Im2colKernels<T>& im2col_kernels();
template <class T>
const FewChannelsKernels<T>& few_channels_kernels();
template <class T>
const WinogradKernels<T>& winograd_kernels(int tile);
template <class T>
const PolyphaseKernels<T>& polyphase_kernels(int tile);

template <class T>
const ConvKernels<T>& conv_kernels() {
  static const ConvKernels<T> table = {
      kLanes<T>,           sparse_kernels<T>(),       dense_kernels<T>(),
      im2col_kernels<T>(), few_channels_kernels<T>(), winograd_kernels<T>,
      polyphase_kernels<T>};
  return table;
}

template const ConvKernels<float>& conv_kernels<float>();
template const ConvKernels<double>& conv_kernels<double>();

}  // namespace metasparse::cpu::METASPARSE_ISA
