// out = silu(gate) * up, with the adapters of both added first.

#define COLUMNS 64

extern "C" __global__ void __launch_bounds__(EXPAND_WARPS * 32, 4) silu_mul(
    const Step* step, const Tile* tiles, const u16* y, const u16* z, u32 z_stride, Scales scales,
    u16* out, u32 width, u32 layer) {
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    let_next_start();
    wait_for_previous();
    for (Share share = share_of(step->tiles, width / COLUMNS); share.take();) {
        const Tile tile = tiles[share.tile];
        const u32 column = share.column * COLUMNS, own = column + 8 * g;
        const AdapterModule* modules[2] = {module_of(tile, layer, 4), module_of(tile, layer, 5)};
#pragma unroll 1
        for (u32 first = 0; first < tile.rows; first += 8) {
            uint4 gate[2], up[2];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const u32 row = first + 2 * q + half;
                const u16* from = y + (u64)(tile.first_row + row) * 2 * width + own;
                gate[half] = row < tile.rows ? *(const uint4*)from : zero16();
                up[half] = row < tile.rows ? *(const uint4*)(from + width) : zero16();
            }
            const Update updates[2] = {
                update_of(tile, modules[0], column, z, z_stride, first),
                update_of(tile, modules[1], column, z, z_stride, first)};
            float acc[2][4][4];
            expand<2>(acc, updates);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const u32 row = first + 2 * q + half;
                if (row >= tile.rows) {
                    continue;
                }
                const u64 r = tile.first_row + row;
                float a[8], b[8];
                adapted(a, gate[half], acc[0], half, tile, modules[0], scales, r, own, own);
                adapted(b, up[half], acc[1], half, tile, modules[1], scales, r, width + own, own);
#pragma unroll
                for (int i = 0; i < 8; ++i) {
                    a[i] = __fdividef(a[i], 1.0f + __expf(-a[i])) * b[i];
                }
                *(uint4*)(out + r * width + own) = pack8(a);
            }
        }
    }
}
