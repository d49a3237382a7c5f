// Attention of single rows over paged keys and values, split over the context (Flash-Decoding: Dao
// et al., 2023). Keys are the rows of the matrix instruction, and the query heads that share a key
// head its columns: up to 8 heads waste nothing of it. The last part of a row to finish joins all
// parts, in their order, so that the result does not depend on timing.
//
// Beside chunks of prompts it starts as soon as their attention has its thread blocks in place: that
// waits for its own instructions most of the time, this for memory. Its blocks then come one by one,
// where room gets free, and take items from a queue.

#define WARPS 4
#define KEY_CHUNKS (HEAD_DIM / 32)
#define VALUE_TILES (HEAD_DIM / 16)
#define HEADS 8

struct DecodeItem {
    u32 row;
    u32 blocks;   // where the sequence's blocks stand in the table
    u32 kv_start; // a multiple of BLOCK_TOKENS
    u32 kv_end;
    u32 partial;       // this part's place
    u32 first_partial; // the place of the row's first part
    u32 partials;      // 1: this is the whole
    u32 counter;       // counts the row's finished parts
    u32 position;      // of the row
};

// Items that thread blocks have taken, and thread blocks that are done; both 0 between launches.
struct Queue {
    u32 taken, done;
};

struct Accumulator {
    float out[VALUE_TILES][4]; // dimensions 16 tile + g (+ 8), heads 2 q and 2 q + 1
    float max[2], sum[2];      // of heads 2 q and 2 q + 1
};

// An 8 x 8 matrix, two neighbouring values of a row in each lane, transposed.
__device__ __forceinline__ u32 transposed(u32 pair) {
    u32 out;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(pair));
    return out;
}

// A head's keys or values of one block, and the scales of them all; null where there are none.
struct Page {
    const kv_t* head;
    const kv_t* scales;
};

// Adds one block of tokens, of which those from `hidden` to `seen` are seen. Row g of the keys' matrix is token
// 4 (g / 2) + g % 2, row g + 8 the one 2 after: the weights of a lane's 4 contiguous tokens then
// meet 8 contiguous bytes of the transposed values.
__device__ __forceinline__ void attend(
    Accumulator& acc, const uint4 (&query)[KEY_CHUNKS], const Page& keys, const Page& values, int hidden, int seen,
    float scale) {
    const int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
    const int token = 4 * (g / 2) + g % 2;
    uint4 upper[KEY_CHUNKS], lower[KEY_CHUNKS];
    uint2 value[VALUE_TILES][2];
#if KV_BITS == 8
    const kv_t* key = keys.head + token * HEAD_DIM + 16 * q;
    uint4 narrow[2][KEY_CHUNKS / 2];
    u32 narrow_value[VALUE_TILES][2];
#pragma unroll
    for (int c = 0; c < KEY_CHUNKS / 2; ++c) {
        narrow[0][c] = __ldcs((const uint4*)(key + 64 * c));
        narrow[1][c] = __ldcs((const uint4*)(key + 2 * HEAD_DIM + 64 * c));
    }
#pragma unroll
    for (int t = 0; t < VALUE_TILES; ++t) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            narrow_value[t][half] = __ldcs((const u32*)(values.head + (16 * t + 8 * half + g) * BLOCK_TOKENS + 4 * q));
        }
    }
    const u32 key_scales = *(const u32*)(keys.scales + g / 2 * 4), value_scales = *(const u32*)(values.scales + 4 * q);
    const float scales[2] = {
        scale * scale_of(key_scales >> 8 * (g % 2) & 0xff), scale * scale_of(key_scales >> (8 * (g % 2) + 16) & 0xff)};
    const u32 first_scales = scale_pair(value_scales, 0), second_scales = scale_pair(value_scales, 2);
#pragma unroll
    for (int c = 0; c < KEY_CHUNKS; ++c) {
        const uint4 up = narrow[0][c / 2], down = narrow[1][c / 2];
        upper[c] = c % 2 == 0 ? widen8(up.x, up.y) : widen8(up.z, up.w);
        lower[c] = c % 2 == 0 ? widen8(down.x, down.y) : widen8(down.z, down.w);
    }
#pragma unroll
    for (int i = 0; i < VALUE_TILES * 2; ++i) {
        const uint2 wide = widen4(narrow_value[i / 2][i % 2]);
        value[i / 2][i % 2] = make_uint2(multiply_f16(wide.x, first_scales), multiply_f16(wide.y, second_scales));
    }
#else
    const kv_t* key = keys.head + token * HEAD_DIM + 8 * q;
    const float scales[2] = {scale, scale};
#pragma unroll
    for (int c = 0; c < KEY_CHUNKS; ++c) {
        upper[c] = __ldcs((const uint4*)(key + 32 * c));
        lower[c] = __ldcs((const uint4*)(key + 2 * HEAD_DIM + 32 * c));
    }
#pragma unroll
    for (int t = 0; t < VALUE_TILES; ++t) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            value[t][half] = __ldcs((const uint2*)(values.head + (16 * t + 8 * half + g) * BLOCK_TOKENS + 4 * q));
        }
    }
#endif
    float scores[4] = {}; // of the tokens (upper, lower) x heads (2 q, 2 q + 1)
#pragma unroll
    for (int c = 0; c < KEY_CHUNKS; ++c) {
        mma32_factors(scores, upper[c], lower[c], query[c]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int at = token + i / 2 * 2;
        scores[i] = at >= hidden && at < seen ? scores[i] * scales[i / 2] : NOTHING;
    }
    float factor[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const float max = fmaxf(acc.max[h], over_g<true>(fmaxf(scores[h], scores[2 + h])));
        factor[h] = power_of_two(acc.max[h] - max);
        acc.max[h] = max;
        scores[h] = power_of_two(scores[h] - max);
        scores[2 + h] = power_of_two(scores[2 + h] - max);
        acc.sum[h] = acc.sum[h] * factor[h] + scores[h] + scores[2 + h];
    }
    const u32 first = transposed(pack_factors(scores[0], scores[1]));
    const u32 second = transposed(pack_factors(scores[2], scores[3]));
    const int own = seen - 4 * q; // of this lane's 4 tokens
#pragma unroll
    for (int t = 0; t < VALUE_TILES; ++t) {
        if (own < 4) {
            // What lies there may be NaN, and a weight of 0 would not silence it.
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                uint2& v = value[t][half];
                v.x = own > 1 ? v.x : own > 0 ? v.x & 0xffffu : 0;
                v.y = own > 2 ? v.y & 0xffffu : 0;
            }
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            acc.out[t][i] *= factor[i % 2];
        }
        mma16_factors(acc.out[t], value[t][0].x, value[t][1].x, value[t][0].y, value[t][1].y, first, second);
    }
}

extern "C" __global__ void __launch_bounds__(WARPS * 32, 4) attention_decode(
    const Step* step, const DecodeItem* items, const u32* block_table, const u16* queries,
    const kv_t* kv, u16* out, float* partial_out, float2* partial_sums, u32* finished, Queue* queue, u32 heads,
    u32 kv_heads, u32 layer, u32 layers, u32 window, float scale) {
    __shared__ float shared_out[WARPS][HEADS][HEAD_DIM];
    __shared__ float2 shared_sums[WARPS][HEADS];
    __shared__ bool is_last;
    __shared__ u32 taken;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
    const u32 group = heads / kv_heads;
    const u64 page = kv_page(kv_heads);
    const bool beside_chunks = queue != nullptr;
    let_next_start();
    u32 index = blockIdx.x;
    if (beside_chunks) {
        // The kernel before let this one start after it had itself waited for those that it reads
        // from as this one does. It has not ended: that is waited for below.
        __threadfence();
        if (threadIdx.x == 0) {
            taken = atomicAdd(&queue->taken, 1);
        }
        __syncthreads();
        index = taken;
    } else {
        wait_for_previous();
    }
    const u32 items_in_all = step->decode_items * kv_heads;
    while (index < items_in_all) {
        u32 next = index + gridDim.x;
        if (beside_chunks && threadIdx.x == 0) {
            next = atomicAdd(&queue->taken, 1);
        }
        const DecodeItem item = items[index / kv_heads];
        const u32 kv_head = index % kv_heads, first_head = kv_head * group;
        // Tokens before the row's window.
        const u32 hidden = window > 0 && item.position >= window ? item.position + 1 - window : 0;
        uint4 query[KEY_CHUNKS];
#pragma unroll
        for (int c = 0; c < KEY_CHUNKS; ++c) {
            const u16* from = queries + ((u64)item.row * heads + first_head + g) * HEAD_DIM + factor_place(c, q);
            query[c] = g < group ? *(const uint4*)from : zero16();
        }
        Accumulator acc = {};
        acc.max[0] = acc.max[1] = -1e30f; // finite: a warp may see no token
#pragma unroll 1
        for (u32 token = item.kv_start + warp * BLOCK_TOKENS; token < item.kv_end; token += WARPS * BLOCK_TOKENS) {
            if (token + BLOCK_TOKENS <= hidden) {
                continue;
            }
            const u64 block = block_table[item.blocks + token / BLOCK_TOKENS];
            const kv_t* at = kv + (block * layers + layer) * 2 * page;
            const Page keys = {at + kv_head * KV_HEAD, at + kv_heads * KV_HEAD + kv_head * BLOCK_TOKENS};
            const Page values = {keys.head + page, keys.scales + page};
            attend(acc, query, keys, values, (int)hidden - (int)token, item.kv_end - token, scale);
        }
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            acc.sum[h] = over_g<false>(acc.sum[h]);
            if (g == 0) {
                shared_sums[warp][2 * q + h] = make_float2(acc.max[h], acc.sum[h]);
            }
#pragma unroll
            for (int t = 0; t < VALUE_TILES; ++t) {
                shared_out[warp][2 * q + h][16 * t + g] = acc.out[t][h];
                shared_out[warp][2 * q + h][16 * t + 8 + g] = acc.out[t][2 + h];
            }
        }
        __syncthreads();
#pragma unroll 1
        for (u32 element = threadIdx.x; element < group * HEAD_DIM; element += WARPS * 32) {
            const u32 h = element / HEAD_DIM, d = element % HEAD_DIM, head = first_head + h;
            float max = shared_sums[0][h].x;
#pragma unroll
            for (int w = 1; w < WARPS; ++w) {
                max = fmaxf(max, shared_sums[w][h].x);
            }
            float sum = 0.0f, value = 0.0f;
#pragma unroll
            for (int w = 0; w < WARPS; ++w) {
                const float factor = power_of_two(shared_sums[w][h].x - max);
                sum += shared_sums[w][h].y * factor;
                value += shared_out[w][h][d] * factor;
            }
            if (item.partials == 1) {
                out[((u64)item.row * heads + head) * HEAD_DIM + d] = to_bf16(value / sum);
            } else {
                partial_out[((u64)item.partial * heads + head) * HEAD_DIM + d] = value;
                if (d == 0) {
                    partial_sums[(u64)item.partial * heads + head] = make_float2(max, sum);
                }
            }
        }
        u32* counter = finished + item.counter * kv_heads + kv_head;
        if (item.partials > 1) {
            __threadfence();
            __syncthreads();
            if (threadIdx.x == 0) {
                is_last = atomicAdd(counter, 1) == item.partials - 1;
            }
            __syncthreads();
            __threadfence();
        }
        const bool joins = item.partials > 1 && is_last;
#pragma unroll 1
        for (u32 element = threadIdx.x; joins && element < group * HEAD_DIM; element += WARPS * 32) {
            const u32 d = element % HEAD_DIM, head = first_head + element / HEAD_DIM;
            float max = NOTHING, sum = 0.0f, value = 0.0f;
#pragma unroll 8
            for (u32 p = item.first_partial; p < item.first_partial + item.partials; ++p) {
                max = fmaxf(max, __ldcg(partial_sums + (u64)p * heads + head).x);
            }
#pragma unroll 8
            for (u32 p = item.first_partial; p < item.first_partial + item.partials; ++p) {
                const float2 sums = __ldcg(partial_sums + (u64)p * heads + head);
                const float factor = power_of_two(sums.x - max);
                sum += sums.y * factor;
                value += __ldcg(partial_out + ((u64)p * heads + head) * HEAD_DIM + d) * factor;
            }
            out[((u64)item.row * heads + head) * HEAD_DIM + d] = to_bf16(value / sum);
        }
        if (threadIdx.x == 0) {
            if (joins) {
                *counter = 0;
            }
            taken = next;
        }
        __syncthreads();
        index = beside_chunks ? taken : next;
    }
    if (beside_chunks) {
        if (threadIdx.x == 0 && atomicAdd(&queue->done, 1) == gridDim.x - 1) {
            queue->taken = queue->done = 0;
        }
        wait_for_previous();
    }
}
