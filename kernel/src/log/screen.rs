//! The log as text on the firmware's framebuffer. The text is kept here and only cells that changed are drawn: reading a
//! framebuffer back is very slow, and drawing all of it for each line would be, too.

use alloc::{vec, vec::Vec};
use bootloader_api::info::{FrameBuffer, FrameBufferInfo, PixelFormat};
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

const HEIGHT: usize = RasterHeight::Size16.val();
const WIDTH: usize = get_raster_width(FontWeight::Regular, RasterHeight::Size16);

/// What is drawn for a character that the font lacks.
static BLANK: [u8; WIDTH * HEIGHT] = [0; WIDTH * HEIGHT];

/// A text console.
pub struct Screen {
    pixels: &'static mut [u8],
    info: FrameBufferInfo,
    columns: usize,
    rows: usize,
    /// What should be seen, row by row.
    text: Vec<u8>,
    /// What was drawn last.
    drawn: Vec<u8>,
    column: usize,
    row: usize,
}

impl Screen {
    /// Takes over `framebuffer` and clears it; `None` where no single character fits or pixels are of an unknown kind.
    pub fn new(framebuffer: FrameBuffer) -> Option<Self> {
        let info = framebuffer.info();
        let pixels = framebuffer.into_buffer();
        let columns = info.width.min(info.stride) / WIDTH;
        let rows = info.height / HEIGHT;
        let known = matches!(
            info.pixel_format,
            PixelFormat::Rgb | PixelFormat::Bgr | PixelFormat::U8
        ) && info.bytes_per_pixel <= 4;
        if columns == 0 || rows == 0 || !known {
            return None;
        }
        pixels.fill(0);
        Some(Self {
            pixels,
            info,
            columns,
            rows,
            text: vec![b' '; columns * rows],
            drawn: vec![b' '; columns * rows],
            column: 0,
            row: 0,
        })
    }

    /// Adds `bytes` to the text; `\n` ends a line. Seen after [`Screen::present`].
    pub fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' {
                self.next_line();
                continue;
            }
            if self.column == self.columns {
                self.next_line();
            }
            self.text[self.row * self.columns + self.column] = byte;
            self.column += 1;
        }
    }

    fn next_line(&mut self) {
        self.column = 0;
        self.row += 1;
        if self.row == self.rows {
            // Several rows at once: most of the screen must be drawn anew each time.
            let gone = (self.rows / 4).max(1);
            self.text.copy_within(gone * self.columns.., 0);
            let kept = (self.rows - gone) * self.columns;
            self.text[kept..].fill(b' ');
            self.row = self.rows - gone;
        }
    }

    /// Draws what has changed.
    pub fn present(&mut self) {
        for cell in 0..self.text.len() {
            if self.text[cell] != self.drawn[cell] {
                self.draw(cell % self.columns, cell / self.columns, self.text[cell]);
                self.drawn[cell] = self.text[cell];
            }
        }
    }

    fn draw(&mut self, column: usize, row: usize, byte: u8) {
        let raster = get_raster(byte as char, FontWeight::Regular, RasterHeight::Size16);
        let rows = raster.map_or(BLANK.chunks_exact(WIDTH), |raster| raster.rows());
        let bytes = self.info.bytes_per_pixel;
        let mut from = (row * HEIGHT * self.info.stride + column * WIDTH) * bytes;
        for levels in rows {
            let Some(line) = self.pixels.get_mut(from..from + WIDTH * bytes) else {
                return;
            };
            // The same light in every channel reads alike in each pixel format.
            if let (4, (pixels, [])) = (bytes, line.as_chunks_mut::<4>()) {
                for (pixel, &level) in pixels.iter_mut().zip(levels) {
                    *pixel = [level; 4];
                }
            } else {
                for (pixel, &level) in line.chunks_exact_mut(bytes).zip(levels) {
                    pixel.fill(level);
                }
            }
            from += self.info.stride * bytes;
        }
    }
}
