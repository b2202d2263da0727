// What all kernels share: packs of numbers, operands, and which rows a thread has.
//
// A map (N, H, W, C) is a matrix to most kernels: its rows are pixels, its columns channels. A thread does not
// work on one number but on a pack of WIDE neighbours in a row:
//
//     WIDE = 4    one access of 16 bytes moves 4 floats; launch/common.py has checked that rows and arrays begin
//                 on such a boundary
//     WIDE = 1    any sizes, any alignment
//
// Threads along x have neighbouring packs, so that a warp reads whole sectors of 32 bytes; threads along y have
// rows. A block is at most a warp wide; wider matrices are cut into tiles of columns, one for each blockIdx.y:
//
//     columns      0   1   2   3 | 4   5   6   7 | ...      threadIdx.x counts packs ->
//     row 0        thread (0,0)  | thread (1,0)  |          threadIdx.y counts rows  |
//     row 1        thread (0,1)  | thread (1,1)  |                                   v

#ifndef WIDE
#define WIDE 1
#endif

template <class T> struct alignas(WIDE * sizeof(T)) Packed {
    T at[WIDE];
};
typedef Packed<float> Pack;
typedef Packed<unsigned char> Codes;

// Operands are what matrix products read: float, or bfloat16, which is the upper half of a float.
#ifdef BF16
struct operand {
    unsigned short bits;
};

__device__ inline operand to_operand(float x) {
    if (x != x) return {0x7fff};  // NaN: adding to its bits might make it an infinity
    unsigned bits = __float_as_uint(x);
    // To the nearest, ties to even: half of the last place that stays, less a bit if that place is even.
    return {(unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
#else
typedef float operand;

__device__ inline operand to_operand(float x) {
    return x;
}
#endif
typedef Packed<operand> Operands;

__device__ inline Operands to_operands(const Pack& x) {
    Operands y;
    for (int i = 0; i < WIDE; i++) y.at[i] = to_operand(x.at[i]);
    return y;
}

// The pack of columns that this thread works on.
__device__ inline int my_pack() {
    return blockIdx.y * blockDim.x + threadIdx.x;
}

// Its first row, and how far it is to the next one, where a grid walks over all rows.
__device__ inline long long my_row() {
    return (long long)blockIdx.x * blockDim.y + threadIdx.y;
}

__device__ inline long long row_step() {
    return (long long)gridDim.x * blockDim.y;
}

// Load a pack of a vector with one number per channel, or `otherwise` where there is no such vector.
__device__ inline Pack of_channels(const float* vector, int pack, float otherwise) {
    Pack x;
    if (vector) return ((const Pack*)vector)[pack];
    for (int i = 0; i < WIDE; i++) x.at[i] = otherwise;
    return x;
}
