//! Server-sent events, cut out of bytes that arrive in any pieces.

/// The events of one stream. Comments, names and ids carry nothing here and are left out.
#[derive(Default)]
pub struct Events {
    buffer: Vec<u8>,
    /// Bytes of the buffer that have been read.
    read: usize,
    /// Lines of the event under way.
    data: Option<String>,
}

impl Events {
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.read);
        self.read = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The data of the next whole event.
    pub fn pop(&mut self) -> Option<String> {
        loop {
            let rest = &self.buffer[self.read..];
            let end = rest.iter().position(|&byte| byte == b'\n')?;
            let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
            self.read += end + 1;
            if line.is_empty() {
                // A comment alone keeps the connection alive and is no event.
                match self.data.take() {
                    Some(data) => return Some(data),
                    None => continue,
                }
            }
            let Some(data) = line.strip_prefix(b"data:") else { continue };
            let text = String::from_utf8_lossy(data.strip_prefix(b" ").unwrap_or(data));
            match &mut self.data {
                None => self.data = Some(text.into_owned()),
                Some(lines) => {
                    lines.push('\n');
                    lines.push_str(&text);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_whole_however_the_bytes_are_cut() {
        let stream = ": hello\n\ndata: {\"a\": \"ĉevalo\"}\n\ndata: one\r\ndata:two\r\n\r\n\
                      data: [DONE]\n\n"
            .as_bytes();
        for size in 1..=stream.len() {
            let mut events = Events::default();
            let mut found = Vec::new();
            for piece in stream.chunks(size) {
                events.push(piece);
                found.extend(std::iter::from_fn(|| events.pop()));
            }
            assert_eq!(found, ["{\"a\": \"ĉevalo\"}", "one\ntwo", "[DONE]"], "pieces of {size}");
        }
    }
}
