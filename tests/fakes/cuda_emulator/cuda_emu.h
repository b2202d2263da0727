// The words of CUDA C++ for a plain C++ compiler: what a kernel's source needs to be compiled as it is, and run on the
// CPU by cuda_emu.cpp. Only what our kernels use; an addition is a few lines.
//
// What it can show: wrong indices, wrong arithmetic, barriers that are missing, misplaced or not reached by all, shared
// memory that is read before it is written, and with the sanitizers accesses out of bounds, misaligned packs and
// integers that overflow. What it cannot: speed, the memory model (a write is seen at once by everybody), races within
// a warp between two collectives, the last bits of expf and logf, and of products that a GPU contracts to a fused
// multiply-add, and that arithmetic on a GPU makes zeros of numbers below 1.2e-38 (launch/compiling.py).
#pragma once
#include <math.h>
#include <string.h>

#define __global__
#define __device__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)

// Blocks run one after the other, so one copy of a block's shared memory will do. It lies in a section of its own,
// which is filled with NaN before every block: what an earlier block left there would hide a read that comes too
// early. (The address sanitizer only guards arrays that lie in no section.)
#ifdef __SANITIZE_ADDRESS__
#define __shared__ static
#else
#define __shared__ static __attribute__((section("emu_shared")))
#endif

struct dim3 {
    unsigned x, y, z;
};

namespace emu {

enum Meeting { BARRIER, COLLECTIVE };  // of the block, of the warp

extern dim3 grid, block, block_index, thread_index;

// Wait until all threads of the block, or of the warp, are here.
void meet(Meeting meeting);

// Where the lanes of the running thread's warp leave what they exchange; 32 places.
double* slots();
unsigned lane();

// Run a kernel: `body` once for every thread. Returns NULL, or what went wrong. A seed other than 0 gives blocks,
// warps and lanes in a random order. If only_block is not -1, only that block (along x) is run.
const char* launch(const unsigned* grid, const unsigned* block, unsigned seed, long long only_block,
                   void (*body)(const void*), const void* arguments);

}  // namespace emu

#define gridDim emu::grid
#define blockDim emu::block
#define blockIdx emu::block_index
#define threadIdx emu::thread_index
#define __syncthreads() emu::meet(emu::BARRIER)
#define __syncwarp() emu::meet(emu::COLLECTIVE)

// Every lane leaves its value, waits, reads another's, and waits again, so that the places can be used again. (A double
// holds every float and every int.)
template <class T> T __shfl_xor_sync(unsigned mask, T value, int other) {
    emu::slots()[emu::lane()] = value;
    emu::meet(emu::COLLECTIVE);
    T theirs = (T)emu::slots()[emu::lane() ^ other];
    emu::meet(emu::COLLECTIVE);
    return theirs;
}

inline unsigned __float_as_uint(float x) {
    unsigned bits;
    memcpy(&bits, &x, 4);
    return bits;
}

inline float __uint_as_float(unsigned bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

// Compiled with -ffp-contract=off, so each operation rounds.
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fsub_rn(float a, float b) { return a - b; }

inline long long min(long long a, long long b) { return a < b ? a : b; }
inline long long max(long long a, long long b) { return a > b ? a : b; }
