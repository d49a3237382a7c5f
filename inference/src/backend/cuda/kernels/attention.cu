// Attention over paged keys and values (FlashAttention-2: Dao, 2023), for prefill chunks and decode
// rows alike. The query heads that share a key head are packed into the rows of the matrix
// instruction: row m of an item is token m / group, head m % group.
//
// Keys and values go from memory into registers without a detour: see the prelude on fragments.
// `permuted` says which token stands in which column, so that the weights of 8 contiguous tokens
// meet 16 contiguous bytes of the transposed values.

#define CHUNKS (HEAD_DIM / 32)
#define WARPS 4
// Tokens of one iteration of a warp: two blocks.
#define STRIDE 32
#define NOT_SPLIT 0xffffffffu
// The score of a token that is not seen.
#define NOTHING __int_as_float(0xff800000)

struct AttentionItem {
    u32 first_row;
    u32 rows; // tokens of the sequence; times the group at most 16 (shared) or 64
    u32 position; // of the first
    u32 blocks; // where the sequence's blocks stand in the table
    u32 kv_start; // a multiple of STRIDE
    u32 kv_end;
    u32 partial; // where the result of a part of the context goes; NOT_SPLIT: it is the whole
    u32 shared; // 1: the warps share one tile of rows and divide the tokens; 0: a tile for each
};

struct Accumulator {
    float out[CHUNKS][4][4];
    float max[2], sum[2]; // of rows g and g + 8
};

struct Tokens {
    int first, end; // end: beyond it nothing has been written
    int upper, lower; // last position that rows g and g + 8 may see
};

// Adds the tokens from `at.first` on, STRIDE of them.
__device__ __forceinline__ void attend(
    Accumulator& acc, const uint4 (&query)[2][CHUNKS], const u16* const (&keys)[2],
    const u16* const (&values)[2], const Tokens& at, float scale) {
    const int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
    float scores[4][4] = {};
#pragma unroll
    for (int t = 0; t < 4; ++t) {
        const int token = permuted(t, g);
        const u16* key = keys[token / BLOCK_TOKENS] + token % BLOCK_TOKENS * HEAD_DIM + 8 * q;
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c) {
            mma32(scores[t], query[0][c], query[1][c], *(const uint4*)(key + 32 * c));
        }
    }
    float max[2] = {acc.max[0], acc.max[1]};
#pragma unroll
    for (int t = 0; t < 4; ++t) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int token = at.first + 8 * q + 2 * t + i % 2;
            const bool seen = token <= (i < 2 ? at.upper : at.lower) && token < at.end;
            scores[t][i] = seen ? scores[t][i] * scale : NOTHING;
            max[i / 2] = fmaxf(max[i / 2], scores[t][i]);
        }
    }
    float factor[2], sum[2] = {0.0f, 0.0f};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        max[half] = fmaxf(max[half], __shfl_xor_sync(0xffffffffu, max[half], 1));
        max[half] = fmaxf(max[half], __shfl_xor_sync(0xffffffffu, max[half], 2));
        // A row that has seen nothing yet: anything finite will do.
        const float safe = max[half] == NOTHING ? 0.0f : max[half];
        factor[half] = exp2f(acc.max[half] - safe);
        acc.max[half] = max[half];
#pragma unroll
        for (int t = 0; t < 4; ++t) {
#pragma unroll
            for (int i = 2 * half; i < 2 * half + 2; ++i) {
                scores[t][i] = exp2f(scores[t][i] - safe);
                sum[half] += scores[t][i];
            }
        }
        acc.sum[half] = acc.sum[half] * factor[half] + sum[half];
    }
    uint4 upper, lower;
    upper = make_uint4(pack(scores[0][0], scores[0][1]), pack(scores[1][0], scores[1][1]),
                       pack(scores[2][0], scores[2][1]), pack(scores[3][0], scores[3][1]));
    lower = make_uint4(pack(scores[0][2], scores[0][3]), pack(scores[1][2], scores[1][3]),
                       pack(scores[2][2], scores[2][3]), pack(scores[3][2], scores[3][3]));
    const int written = at.end - at.first - 8 * q; // of the 8 tokens of this lane
    const u16* value = values[q / 2] + q % 2 * 8;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
#pragma unroll
        for (int t = 0; t < 4; ++t) {
            acc.out[c][t][0] *= factor[0];
            acc.out[c][t][1] *= factor[0];
            acc.out[c][t][2] *= factor[1];
            acc.out[c][t][3] *= factor[1];
            const int d = 32 * c + permuted(t, g);
            uint4 v = *(const uint4*)(value + d * BLOCK_TOKENS);
            if (written < 8) {
                // What lies there may be NaN, and a weight of 0 would not silence it.
                u32* words = (u32*)&v;
#pragma unroll
                for (int w = 0; w < 4; ++w) {
                    words[w] = 2 * w + 1 < written ? words[w] : 2 * w < written ? words[w] & 0xffffu : 0;
                }
            }
            mma32(acc.out[c][t], upper, lower, v);
        }
    }
}

extern "C" __global__ void __launch_bounds__(WARPS * 32, 2) attention(
    const Step* step, const AttentionItem* items, const u32* block_table, const u16* queries,
    const u16* kv, u16* out, float* partial_out, float2* partial_sums, u32 heads, u32 kv_heads,
    u32 layer, u32 layers, float scale) {
    __shared__ float shared_out[WARPS][16][HEAD_DIM];
    __shared__ float2 shared_sums[WARPS][16];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
    const u32 group = heads / kv_heads;
    for (u32 index = blockIdx.x; index < step->attention_items * kv_heads; index += gridDim.x) {
        const AttentionItem item = items[index / kv_heads];
        const u32 kv_head = index % kv_heads;
        const u32 first_m = item.shared ? 0 : warp * 16;
        const u32 count = item.rows * group;
        if (!item.shared && first_m >= count) {
            continue;
        }
        const u32 m[2] = {first_m + g, first_m + g + 8};
        uint4 query[2][CHUNKS];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const u64 row = item.first_row + m[half] / group;
            const u16* from = queries + (row * heads + kv_head * group + m[half] % group) * HEAD_DIM + 8 * q;
#pragma unroll
            for (int c = 0; c < CHUNKS; ++c) {
                query[half][c] = m[half] < count ? *(const uint4*)(from + 32 * c) : zero16();
            }
        }
        Accumulator acc = {};
        acc.max[0] = acc.max[1] = NOTHING;
        Tokens at;
        at.upper = item.position + min(m[0], count - 1) / group;
        at.lower = item.position + min(m[1], count - 1) / group;
        at.end = item.kv_end;
        // No row of this warp sees further.
        const u32 end = min(item.kv_end, (u32)(item.position + min(first_m + 15, count - 1) / group + 1));
        const u32 stride = item.shared ? WARPS * STRIDE : STRIDE;
        const u64 page = (u64)kv_heads * BLOCK_TOKENS * HEAD_DIM;
        for (u32 token = item.kv_start + (item.shared ? warp * STRIDE : 0); token < end; token += stride) {
            const u32* blocks = block_table + item.blocks + token / BLOCK_TOKENS;
            const u32 first = blocks[0];
            // The second block may not exist; the first then stands in for it, masked.
            const u32 second = token + BLOCK_TOKENS < item.kv_end ? blocks[1] : first;
            const u64 head = kv_head * BLOCK_TOKENS * HEAD_DIM;
            const u16* keys[2] = {
                kv + ((u64)first * layers + layer) * 2 * page + head,
                kv + ((u64)second * layers + layer) * 2 * page + head};
            const u16* values[2] = {keys[0] + page, keys[1] + page};
            at.first = token;
            attend(acc, query, keys, values, at, scale);
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            acc.sum[half] += __shfl_xor_sync(0xffffffffu, acc.sum[half], 1);
            acc.sum[half] += __shfl_xor_sync(0xffffffffu, acc.sum[half], 2);
        }
        if (!item.shared) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                if (m[half] >= count) {
                    continue;
                }
                const float inverse = 1.0f / acc.sum[half];
                const u64 row = item.first_row + m[half] / group;
                u16* to = out + (row * heads + kv_head * group + m[half] % group) * HEAD_DIM + 8 * q;
#pragma unroll
                for (int c = 0; c < CHUNKS; ++c) {
                    float values[8];
#pragma unroll
                    for (int i = 0; i < 8; ++i) {
                        values[i] = acc.out[c][i / 2][2 * half + i % 2] * inverse;
                    }
                    *(uint4*)(to + 32 * c) = pack8(values);
                }
            }
            continue;
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = g + 8 * half;
            if (q == 0) {
                shared_sums[warp][row] = make_float2(acc.max[half], acc.sum[half]);
            }
#pragma unroll
            for (int c = 0; c < CHUNKS; ++c) {
#pragma unroll
                for (int i = 0; i < 8; ++i) {
                    shared_out[warp][row][32 * c + 8 * q + i] = acc.out[c][i / 2][2 * half + i % 2];
                }
            }
        }
        __syncthreads();
        for (u32 element = threadIdx.x; element < count * HEAD_DIM; element += WARPS * 32) {
            const u32 row = element / HEAD_DIM, d = element % HEAD_DIM;
            float max = NOTHING;
#pragma unroll
            for (int w = 0; w < WARPS; ++w) {
                max = fmaxf(max, shared_sums[w][row].x);
            }
            float sum = 0.0f, value = 0.0f;
#pragma unroll
            for (int w = 0; w < WARPS; ++w) {
                const float factor = exp2f(shared_sums[w][row].x - max);
                sum += shared_sums[w][row].y * factor;
                value += shared_out[w][row][d] * factor;
            }
            const u32 head = kv_head * group + row % group;
            if (item.partial == NOT_SPLIT) {
                const u64 to = item.first_row + row / group;
                out[(to * heads + head) * HEAD_DIM + d] = to_bf16(value / sum);
            } else {
                partial_out[((u64)item.partial * heads + head) * HEAD_DIM + d] = value;
                if (d == 0) {
                    partial_sums[(u64)item.partial * heads + head] = make_float2(max, sum);
                }
            }
        }
        __syncthreads();
    }
}

struct CombineItem {
    u32 row;
    u32 first_partial;
    u32 partials;
    u32 unused;
};

// Joins the parts of long contexts, in order.
extern "C" __global__ void __launch_bounds__(HEAD_DIM) combine(
    const Step* step, const CombineItem* items, const float* partial_out, const float2* partial_sums,
    u16* out, u32 heads) {
    for (u32 index = blockIdx.x; index < step->combine_items * heads; index += gridDim.x) {
        const CombineItem item = items[index / heads];
        const u32 head = index % heads;
        float max = NOTHING;
        for (u32 p = 0; p < item.partials; ++p) {
            max = fmaxf(max, partial_sums[(u64)(item.first_partial + p) * heads + head].x);
        }
        float sum = 0.0f, value = 0.0f;
        for (u32 p = 0; p < item.partials; ++p) {
            const u64 at = (u64)(item.first_partial + p) * heads + head;
            const float2 sums = partial_sums[at];
            const float factor = exp2f(sums.x - max);
            sum += sums.y * factor;
            value += partial_out[at * HEAD_DIM + threadIdx.x] * factor;
        }
        out[((u64)item.row * heads + head) * HEAD_DIM + threadIdx.x] = to_bf16(value / sum);
    }
}
