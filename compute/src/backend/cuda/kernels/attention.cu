// Attention of prefill chunks over paged keys and values (FlashAttention-2: Dao, 2023). The query
// heads that share a key head are packed into the rows of the matrix instruction: row m of an item
// is token m / group, head m % group. The warps of a team have 16 rows each and share the keys and
// values in shared memory, where the next tokens arrive while these are computed. A thread block has
// two teams, which take turns at the tokens and add up in the end: one alone would mostly wait for
// its own instructions.
//
// `permuted` says which token stands in which column, so that the weights of 8 contiguous tokens
// meet 16 contiguous bytes of the transposed values.

#define CHUNKS (HEAD_DIM / 32)
// Of a team.
#define WARPS 4
#define TEAMS 2
// Tokens of one iteration: two blocks.
#define STRIDE 32
// Rows of shared memory are spaced so that the 8 lanes that read together meet different banks.
#if KV_BITS == 8
#define KEY_ROW (HEAD_DIM / 128 * 128 + 64)
#else
#define KEY_ROW (HEAD_DIM + 32)
#endif
#define VALUE_ROW STRIDE
// Values of 16 bytes.
#define PIECE (128 / KV_BITS)

struct AttentionItem {
    u32 first_row;
    u32 rows; // tokens of the sequence; times the group at most 64: 16 for each warp
    u32 position; // of the first
    u32 blocks; // where the sequence's blocks stand in the table
};

// Column, inside a group of 32, of the B operand's column `n` of the given tile.
__device__ __forceinline__ int permuted(int tile, int n) { return 8 * (n >> 1) + 2 * tile + (n & 1); }

struct Stage {
    kv_t keys[STRIDE][KEY_ROW];
    kv_t values[HEAD_DIM][VALUE_ROW];
#if KV_BITS == 8
    kv_t key_scales[STRIDE], value_scales[STRIDE];
#endif
};

struct Accumulator {
    float out[CHUNKS][4][4];
    float max[2], sum[2]; // of rows g and g + 8
};

struct Tokens {
    int first, end; // end: beyond it nothing has been written
    int upper, lower; // last position that rows g and g + 8 may see
    int window;       // how many up to it
};

// 16 bytes to shared memory, zeros when they do not exist. Arrives later.
__device__ __forceinline__ void copy16(void* to, const void* from, bool exists) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((u32)__cvta_generic_to_shared(to)),
                 "l"(from), "r"(exists ? 16 : 0)
                 : "memory");
}

// Where a head's keys lie in the layer's part of block 0, and their scales.
struct Source {
    const kv_t* keys;
    const kv_t* scales;
    u64 block_size, page;
};

// Starts to copy the tokens from `first` on.
__device__ __forceinline__ void fetch(Stage& stage, const u32* blocks, const Source& source, u32 first, u32 end) {
    // The first of the two blocks exists.
    const bool has_second = first + BLOCK_TOKENS < end;
    const u32 block = first / BLOCK_TOKENS;
    const u64 offset[2] = {
        blocks[block] * source.block_size, (has_second ? blocks[block + 1] : 0) * source.block_size};
#pragma unroll
    for (u32 i = threadIdx.x % (WARPS * 32); i < STRIDE * HEAD_DIM / PIECE; i += WARPS * 32) {
        const u32 token = i / (HEAD_DIM / PIECE), part = i % (HEAD_DIM / PIECE) * PIECE;
        const u32 of = token / BLOCK_TOKENS;
        const kv_t* keys = source.keys + (of == 0 ? offset[0] : offset[1]);
        copy16(&stage.keys[token][part], keys + token % BLOCK_TOKENS * HEAD_DIM + part, of == 0 || has_second);
        // The same number of pieces: of dimension d, the tokens from PIECE * piece on.
        const u32 d = i / (STRIDE / PIECE), first_token = i % (STRIDE / PIECE) * PIECE;
        const u32 value_of = first_token / BLOCK_TOKENS;
        const kv_t* values = source.keys + (value_of == 0 ? offset[0] : offset[1]) + source.page;
        copy16(
            &stage.values[d][first_token], values + d * BLOCK_TOKENS + first_token % BLOCK_TOKENS,
            value_of == 0 || has_second);
    }
#if KV_BITS == 8
    if (threadIdx.x % (WARPS * 32) < 4) {
        const u32 of = threadIdx.x % 4 / 2, is_value = threadIdx.x % 2;
        kv_t* to = (is_value ? stage.value_scales : stage.key_scales) + of * BLOCK_TOKENS;
        const kv_t* from = source.scales + (of == 0 ? offset[0] : offset[1]) + is_value * source.page;
        copy16(to, from, of == 0 || has_second);
    }
#endif
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Adds the tokens from `at.first` on, STRIDE of them.
__device__ __forceinline__ void attend(
    Accumulator& acc, const uint4 (&query)[2][CHUNKS], const Stage& stage, const Tokens& at, float scale) {
    const int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
    float scores[4][4] = {};
#pragma unroll
    for (int t = 0; t < 4; ++t) {
#if KV_BITS == 8
        const kv_t* key = stage.keys[permuted(t, g)] + 16 * q;
#pragma unroll
        for (int c = 0; c < CHUNKS; c += 2) {
            const uint4 narrow = *(const uint4*)(key + 32 * c);
            mma32_factors(scores[t], query[0][c], query[1][c], widen8(narrow.x, narrow.y));
            mma32_factors(scores[t], query[0][c + 1], query[1][c + 1], widen8(narrow.z, narrow.w));
        }
#else
        const kv_t* key = stage.keys[permuted(t, g)] + 8 * q;
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c) {
            mma32(scores[t], query[0][c], query[1][c], *(const uint4*)(key + 32 * c));
        }
#endif
    }
#if KV_BITS == 8
    const uint2 key_scales = *(const uint2*)(stage.key_scales + 8 * q);
    const uint2 value_scales = *(const uint2*)(stage.value_scales + 8 * q);
#endif
    float max[2] = {acc.max[0], acc.max[1]};
#pragma unroll
    for (int t = 0; t < 4; ++t) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int token = at.first + 8 * q + 2 * t + i % 2;
            const int last = i < 2 ? at.upper : at.lower;
            const bool seen = token <= last && token > last - at.window && token < at.end;
#if KV_BITS == 8
            const float own = scale * scale_of((t < 2 ? key_scales.x : key_scales.y) >> (16 * (t % 2) + 8 * (i % 2)) & 0xff);
#else
            const float own = scale;
#endif
            scores[t][i] = seen ? scores[t][i] * own : NOTHING;
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
        factor[half] = power_of_two(acc.max[half] - safe);
        acc.max[half] = max[half];
#pragma unroll
        for (int t = 0; t < 4; ++t) {
#pragma unroll
            for (int i = 2 * half; i < 2 * half + 2; ++i) {
                scores[t][i] = power_of_two(scores[t][i] - safe);
                sum[half] += scores[t][i];
            }
        }
        acc.sum[half] = acc.sum[half] * factor[half] + sum[half];
    }
    const uint4 upper = make_uint4(
        pack_factors(scores[0][0], scores[0][1]), pack_factors(scores[1][0], scores[1][1]),
        pack_factors(scores[2][0], scores[2][1]), pack_factors(scores[3][0], scores[3][1]));
    const uint4 lower = make_uint4(
        pack_factors(scores[0][2], scores[0][3]), pack_factors(scores[1][2], scores[1][3]),
        pack_factors(scores[2][2], scores[2][3]), pack_factors(scores[3][2], scores[3][3]));
    const int written = at.end - at.first - 8 * q; // of the 8 tokens of this lane
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
#pragma unroll
        for (int t = 0; t < 4; ++t) {
            acc.out[c][t][0] *= factor[0];
            acc.out[c][t][1] *= factor[0];
            acc.out[c][t][2] *= factor[1];
            acc.out[c][t][3] *= factor[1];
#if KV_BITS == 8
            const uint2 narrow = *(const uint2*)(stage.values[32 * c + permuted(t, g)] + 8 * q);
            uint4 v = widen8(narrow.x, narrow.y);
            v.x = multiply_f16(v.x, scale_pair(value_scales.x, 0));
            v.y = multiply_f16(v.y, scale_pair(value_scales.x, 2));
            v.z = multiply_f16(v.z, scale_pair(value_scales.y, 0));
            v.w = multiply_f16(v.w, scale_pair(value_scales.y, 2));
#else
            uint4 v = *(const uint4*)(stage.values[32 * c + permuted(t, g)] + 8 * q);
#endif
            if (written < 8) {
                // What lies there may be NaN, and a weight of 0 would not silence it.
                v.x = written > 1 ? v.x : written > 0 ? v.x & 0xffffu : 0;
                v.y = written > 3 ? v.y : written > 2 ? v.y & 0xffffu : 0;
                v.z = written > 5 ? v.z : written > 4 ? v.z & 0xffffu : 0;
                v.w = written > 6 ? v.w & 0xffffu : 0;
            }
            mma32_factors(acc.out[c][t], upper, lower, v);
        }
    }
}

// Waits for the threads of this team.
__device__ __forceinline__ void team_sync(u32 team) {
    asm volatile("bar.sync %0, %1;" ::"r"(team + 1), "n"(WARPS * 32) : "memory");
}

// What a thread of the second team hands to the same of the first.
#define HANDED (CHUNKS * 16 + 4)

// The bound leaves room for a thread block of the single rows' attention beside this one.
extern "C" __global__ void __launch_bounds__((TEAMS + 1) * WARPS * 32, 1) attention(
    const Step* step, const AttentionItem* items, const u32* block_table, const u16* queries,
    const kv_t* kv, u16* out, u32 heads, u32 kv_heads, u32 layer, u32 layers, u32 window, float scale) {
    extern __shared__ __align__(16) unsigned char shared[];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % WARPS, g = lane / 4, q = lane % 4;
    const u32 team = threadIdx.x / (WARPS * 32);
    Stage* const stages = (Stage*)shared + 2 * team;
    float* const handed = (float*)shared + threadIdx.x % (WARPS * 32);
    static_assert(sizeof(Stage) * 2 * TEAMS <= 72 << 10 && HANDED * WARPS * 32 * 4 <= 72 << 10, "shared memory");
    const u32 group = heads / kv_heads;
    const u64 page = kv_page(kv_heads);
    wait_for_previous();
    // Not before: the single rows' attention reads without waiting for this kernel's end.
    let_next_start();
    const u32 count_of_items = step->attention_items;
    for (u32 index = blockIdx.x; index < count_of_items * kv_heads; index += gridDim.x) {
        // The longest contexts first.
        const AttentionItem item = items[count_of_items - 1 - index / kv_heads];
        const u32 kv_head = index % kv_heads;
        const kv_t* layer_kv = kv + (u64)layer * 2 * page;
        const Source source = {
            layer_kv + kv_head * KV_HEAD, layer_kv + kv_heads * KV_HEAD + kv_head * BLOCK_TOKENS, layers * 2 * page,
            page};
        const u32* blocks = block_table + item.blocks;
        const u32 first_m = warp * 16, count = item.rows * group;
        const u32 m[2] = {first_m + g, first_m + g + 8};
        const u32 end = item.position + item.rows;
        // What no row's window reaches is left out.
        const u32 hidden = window > 0 && item.position >= window ? item.position + 1 - window : 0;
        const u32 begin = hidden / STRIDE * STRIDE;
        const u32 own = begin + team * STRIDE;
        if (own < end) {
            fetch(stages[0], blocks, source, own, end);
        }
        uint4 query[2][CHUNKS];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const u64 row = item.first_row + min(m[half], count - 1) / group;
            const u16* from = queries + (row * heads + kv_head * group + m[half] % group) * HEAD_DIM;
#pragma unroll
            for (int c = 0; c < CHUNKS; ++c) {
                query[half][c] = m[half] < count ? *(const uint4*)(from + factor_place(c, q)) : zero16();
            }
        }
        Accumulator acc = {};
        acc.max[0] = acc.max[1] = NOTHING;
        Tokens at;
        at.upper = item.position + min(m[0], count - 1) / group;
        at.lower = item.position + min(m[1], count - 1) / group;
        at.end = end;
        at.window = window > 0 ? (int)window : 0x7fffffff;
        u32 turn = 0;
#pragma unroll 1
        for (u32 first = own; first < end; first += TEAMS * STRIDE, turn ^= 1) {
            if (first + TEAMS * STRIDE < end) {
                fetch(stages[turn ^ 1], blocks, source, first + TEAMS * STRIDE, end);
                asm volatile("cp.async.wait_group 1;" ::: "memory");
            } else {
                asm volatile("cp.async.wait_group 0;" ::: "memory");
            }
            team_sync(team);
            at.first = first;
            if (first_m < count) {
                attend(acc, query, stages[turn], at, scale);
            }
            // The next copies go where this has read.
            team_sync(team);
        }
        // Of both teams: what is handed over goes where they have read.
        __syncthreads();
        if (team == 1) {
#pragma unroll
            for (int i = 0; i < CHUNKS * 16; ++i) {
                handed[i * WARPS * 32] = acc.out[i / 16][i / 4 % 4][i % 4];
            }
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                handed[(CHUNKS * 16 + half) * WARPS * 32] = acc.max[half];
                handed[(CHUNKS * 16 + 2 + half) * WARPS * 32] = acc.sum[half];
            }
        }
        __syncthreads();
        if (team == 0) {
            float factor[2], other_factor[2];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const float other = handed[(CHUNKS * 16 + half) * WARPS * 32];
                // The first tokens that a row sees may all be the second team's.
                const float max = fmaxf(acc.max[half], other), safe = max == NOTHING ? 0.0f : max;
                factor[half] = power_of_two(acc.max[half] - safe);
                other_factor[half] = power_of_two(other - safe);
                acc.sum[half] = acc.sum[half] * factor[half]
                    + handed[(CHUNKS * 16 + 2 + half) * WARPS * 32] * other_factor[half];
            }
#pragma unroll
            for (int i = 0; i < CHUNKS * 16; ++i) {
                float& out = acc.out[i / 16][i / 4 % 4][i % 4];
                out = out * factor[i % 4 / 2] + handed[i * WARPS * 32] * other_factor[i % 4 / 2];
            }
        }
        // The next item's copies go where this has read.
        __syncthreads();
        if (team == 1) {
            continue;
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            acc.sum[half] += __shfl_xor_sync(0xffffffffu, acc.sum[half], 1);
            acc.sum[half] += __shfl_xor_sync(0xffffffffu, acc.sum[half], 2);
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
    }
}
