// hidden += y, with the adapters added first. For steps without adapters the norm does this itself.

#define COLUMNS 64

extern "C" __global__ void __launch_bounds__(EXPAND_WARPS * 32, 4) residual(
    const Step* step, const Tile* tiles, const u16* y, const u16* z, u32 z_stride, Scales scales,
    float* hidden, u32 width, u32 layer, u32 linear) {
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    let_next_start();
    wait_for_previous();
    for (Share share = share_of(step->tiles, width / COLUMNS); share.take();) {
        const Tile tile = tiles[share.tile];
        const u32 column = share.column * COLUMNS, own = column + 8 * g;
        const AdapterModule* module = module_of(tile, layer, linear);
#pragma unroll 1
        for (u32 first = 0; first < tile.rows; first += 8) {
            uint4 product[2];
            float4 before[2][2];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                // A row that does not exist: the last one's place is read instead.
                const u64 r = tile.first_row + min(first + 2 * q + half, tile.rows - 1);
                product[half] = *(const uint4*)(y + r * width + own);
                before[half][0] = *(const float4*)(hidden + r * width + own);
                before[half][1] = *(const float4*)(hidden + r * width + own + 4);
            }
            const Update updates[1] = {update_of(tile, module, column, z, z_stride, first)};
            float acc[1][4][4];
            expand<1>(acc, updates);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const u32 row = first + 2 * q + half;
                if (row >= tile.rows) {
                    continue;
                }
                const u64 r = tile.first_row + row;
                float add[8];
                adapted(add, product[half], acc[0], half, tile, module, scales, r, own, own);
                const float4 low = before[half][0], high = before[half][1];
                float* h = hidden + r * width + own;
                *(float4*)h = make_float4(low.x + add[0], low.y + add[1], low.z + add[2], low.w + add[3]);
                *(float4*)(h + 4) = make_float4(high.x + add[4], high.y + add[5], high.z + add[6], high.w + add[7]);
            }
        }
    }
}
