// A step of stochastic gradient descent over the flat buffers, as optim.SGD makes it.
//
//     g = g + weight_decay * w
//     v = momentum * v + g
//     g = v, or with nesterov g + momentum * v
//     w = w - lr * g            and, for products in bfloat16, the new w rounded to it
//
// All parameters lie end to end, so one launch serves all parameters that decay alike:
//
//     threads   0   1   2   3  ... one grid, then on:    0   1   2 ...
//     packs   |   |   |   |   |                        |   |   |
//
// The learning rate is read from a table in device memory, at the place that a counter there gives: a captured graph
// has its arguments written into it, and is replayed with another rate in every step.
//
// Bytes: 20 per parameter with momentum (w, g, v read, w, v written), 22 with bfloat16. VGG16 at 32 px with 4096-wide
// linear layers has 34 million: 0.67 GB. The limit is memory bandwidth. (Calculated, not yet measured.)
#include "common.cuh"

extern "C" __global__ void sgd(float* __restrict__ values, const float* __restrict__ gradients,
                               float* __restrict__ velocity, operand* __restrict__ operands,
                               const float* __restrict__ rates, const long long* __restrict__ batch, float momentum,
                               float weight_decay, int nesterov, long long packs) {
    float lr = rates[*batch];
    for (long long k = (long long)blockIdx.x * blockDim.x + threadIdx.x; k < packs;
         k += (long long)gridDim.x * blockDim.x) {
        Pack w = ((Pack*)values)[k], g = ((const Pack*)gradients)[k], v = {};
        if (velocity) v = ((Pack*)velocity)[k];
        for (int i = 0; i < WIDE; i++) {
            g.at[i] += weight_decay * w.at[i];
            v.at[i] = momentum * v.at[i] + g.at[i];
            w.at[i] -= lr * (nesterov ? g.at[i] + momentum * v.at[i] : v.at[i]);
        }
        ((Pack*)values)[k] = w;
        if (velocity) ((Pack*)velocity)[k] = v;
        if (operands) ((Operands*)operands)[k] = to_operands(w);
    }
}
