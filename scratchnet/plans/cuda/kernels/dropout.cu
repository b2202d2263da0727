// Dropout, with random numbers that are computed where they are used.
//
//     y = y / (1 - p) with probability 1 - p, else 0
//
// A random number is a function of its place: Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as
// 1, 2, 3", sec. 3.3) scrambles a counter of 128 bits with a key of 64, into four numbers of 32 bits. The key is the
// layer's seed; the counter is the place in y and the step, which is read from device memory: a replayed graph draws
// other numbers in every step, and a run that is resumed at a step goes on with the same numbers.
//
//     thread     0              1              2
//     y        | 0  1  2  3   | 4  5  6  7   | ...        four numbers per scrambling
//
// No mask is kept. After a ReLU the backward pass needs none: y > 0 exactly where both let a number pass (mask.cu).
// A dropout on its own is applied to dy with the same key and counter, and so drops the same places.
//
// Bytes: 8 per number; 512 x 4096 numbers after a linear layer of VGG16 are 17 MB. 100 integer operations for four
// numbers: the limit is memory bandwidth, or for so few numbers the time of a launch. (Calculated,
// not yet measured.)
#include "common.cuh"

struct Four {
    unsigned at[4];
};

__device__ inline Four philox(Four counter, unsigned key0, unsigned key1) {
    for (int round = 0; round < 10; round++) {
        unsigned long long a = 0xD2511F53ull * counter.at[0], b = 0xCD9E8D57ull * counter.at[2];
        counter = {{(unsigned)(b >> 32) ^ counter.at[1] ^ key0, (unsigned)b,
                    (unsigned)(a >> 32) ^ counter.at[3] ^ key1, (unsigned)a}};
        key0 += 0x9E3779B9;  // the golden ratio, and below the square root of 3 less 1
        key1 += 0xBB67AE85;
    }
    return counter;
}

extern "C" __global__ void dropout(float* __restrict__ y, long long size, unsigned long long seed,
                                   const long long* __restrict__ step, unsigned long long threshold, float scale) {
    for (long long four = (long long)blockIdx.x * blockDim.x + threadIdx.x; 4 * four < size;
         four += (long long)gridDim.x * blockDim.x) {
        Four counter = {{(unsigned)four, (unsigned)(four >> 32), (unsigned)*step, (unsigned)(*step >> 32)}};
        Four random = philox(counter, (unsigned)seed, (unsigned)(seed >> 32));
        for (int i = 0; i < 4 && 4 * four + i < size; i++) {
            float& value = y[4 * four + i];
            value = random.at[i] < threshold ? value * scale : 0;
        }
    }
}
