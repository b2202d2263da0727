// Sums over the rows of a matrix, one for each channel: the second stage. (The gradient of a bias; the sums of batch
// normalisation.)
//
//     out[c] = sum over k of partial[k, c]
//
// A sum over 500,000 rows is made in two stages. In the first, a block has a share of the rows, and each of its
// threads a few of them; they are added up in shared memory (block_sum, in sums.cuh) and the block writes one row of
// `partial`. In the second, here, these partial sums are added up. The order of every addition is fixed by the sizes
// alone: no atomics, always the same bits. It is also an accurate order: no running total is longer than a few hundred
// numbers (Higham 1993, as in functional/sums.py).
//
// A block has 32 channels and 16 threads for each of them:
//
//     channels        0 ... 31    32 ... 63
//     k = 0, 16, ..   thread y=0
//     k = 1, 17, ..   thread y=1                 then y=0 adds up what its 16 threads have
//     ...
//
// Bytes: 4 per partial sum and channel, at most 512 x 512 of them, 1 MB: the limit is latency, a few microseconds.
// (Calculated, not yet measured.)
#include "common.cuh"

extern "C" __global__ void finish_sums(const float* __restrict__ partial, float* __restrict__ out, int count, int C) {
    __shared__ double sums[16][32];
    int c = blockIdx.x * 32 + threadIdx.x;
    double sum = 0;
    if (c < C)
        for (int k = threadIdx.y; k < count; k += 16) sum += partial[(long long)k * C + c];
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && c < C) {
        for (int y = 1; y < 16; y++) sum += sums[y][threadIdx.x];
        out[c] = sum;
    }
}
