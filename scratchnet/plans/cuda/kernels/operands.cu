// Operands: float32 numbers as matrix products read them.
//
//     out = x, rounded to bfloat16: 8 bits of exponent as in float32, 8 bits of precision in place of 24
//
// A thread has a pack of numbers, and then the pack that lies a whole grid further on:
//
//     thread     0    1    2    3   ...   0    1    2   ...
//     packs    |    |    |    |    |    |    |    |    |
//
// Bytes: 6 per number. The largest that is cast in VGG16 at 32 px is what the linear layers read, 512 x 4096 numbers:
// 13 MB. (Columns and gradients are rounded where they are made, weights by the optimizer.) The limit is memory
// bandwidth, or for so few numbers the time of a launch. (Calculated, not yet measured.)
#include "common.cuh"

extern "C" __global__ void cast(const float* __restrict__ x, operand* __restrict__ out, long long packs) {
    for (long long k = (long long)blockIdx.x * blockDim.x + threadIdx.x; k < packs;
         k += (long long)gridDim.x * blockDim.x) {
        Pack value = ((const Pack*)x)[k];
        ((Operands*)out)[k] = to_operands(value);
    }
}
