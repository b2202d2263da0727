// The first stage of a sum over rows (the second is sums.cu): which rows a block has, and how its threads add up.

// The rows of partial sum blockIdx.x. A block's threads take every blockDim.y-th of them.
struct RowRange {
    long long first, stop;

    __device__ RowRange(long long rows) {
        long long size = (rows + gridDim.x - 1) / gridDim.x;
        first = min(blockIdx.x * size, rows);
        stop = min(first + size, rows);
    }
};

// Add up what the threads with the same columns have. The sum is that of thread y = 0; all threads must call this.
//
//     y     0   1   2   3   4   5   6   7
//     4     0+4 1+5 2+6 3+7                    half of the threads add what the other half has, and again:
//     2     0+2 1+3                            so each addition has its place, whichever warp comes first
//     1     0+1
__device__ static inline Pack block_sum(Pack mine) {
    __shared__ Pack sums[256];
    int me = threadIdx.y * blockDim.x + threadIdx.x;
    __syncthreads();  // an earlier sum may still be read
    sums[me] = mine;
    for (int half = blockDim.y / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.y < half)
            for (int i = 0; i < WIDE; i++) sums[me].at[i] += sums[me + half * blockDim.x].at[i];
    }
    return sums[me];
}
