import { fileURLToPath } from 'node:url'

import { svelte } from '@sveltejs/vite-plugin-svelte'
import { defineConfig } from 'vite'

/** Where the built files go: package data of the control process, which serves them. */
const OUTPUT = fileURLToPath(new URL('../fleetproxy/control/pages/dashboard', import.meta.url))

export default defineConfig({
  base: '/dashboard/',
  plugins: [svelte()],
  resolve: { alias: { $: fileURLToPath(new URL('./src', import.meta.url)) } },
  build: {
    outDir: OUTPUT,
    emptyOutDir: true,
    target: 'es2022',
    // Nothing inline: the policy allows files of ours only.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    reportCompressedSize: false,
    rollupOptions: {
      output: {
        // A page's chunk is called as the page is.
        chunkFileNames: ({ name, facadeModuleId }) =>
          `assets/${/pages\/([a-z-]+)\/index\.svelte$/.exec(facadeModuleId ?? '')?.[1] ?? name}-[hash].js`,
      },
    },
  },
  server: {
    // The names of colours are shared with the pages beside the dashboard.
    fs: { allow: ['..'] },
    // `just ui-dev`: pages from Vite, data from a running fleetproxy.
    proxy: Object.fromEntries(
      ['/api', '/v1', '/state', '/metrics', '/healthz', '/readyz'].map((path) => [
        path,
        { target: process.env['FLEETPROXY_URL'] ?? 'http://127.0.0.1:11434', changeOrigin: true },
      ]),
    ),
  },
})
