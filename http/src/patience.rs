//! A connection whose other end must go on reading.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// Bytes that a client takes in its time, if it does not take all that waits for it.
pub(crate) const LEAST_TAKEN: usize = 16 << 10;

/// Fails with [`io::ErrorKind::TimedOut`] when the other end leaves something waiting and, within its
/// time, takes neither all of it nor [`LEAST_TAKEN`]: a client that reads nothing, or a byte now and then.
pub(crate) struct Impatient<T> {
    stream: T,
    patience: Duration,
    /// Since a write had to wait.
    stalled: Option<Stalled>,
}

struct Stalled {
    deadline: Pin<Box<Sleep>>,
    taken: usize,
}

impl<T> Impatient<T> {
    pub fn new(stream: T, patience: Duration) -> Self {
        Self { stream, patience, stalled: None }
    }

    /// Ready with the outcome of a write, or with the error that it has waited for too long.
    fn within_patience(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = written {
            self.took(bytes);
        }
        if written.is_ready() {
            return written;
        }
        let patience = self.patience;
        let stalled = self.stalled.get_or_insert_with(|| Stalled {
            deadline: Box::pin(tokio::time::sleep(patience)),
            taken: 0,
        });
        ready!(stalled.deadline.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("the client took {} bytes in {} s", stalled.taken, patience.as_secs_f32()),
        )))
    }

    fn took(&mut self, bytes: usize) {
        let Some(stalled) = &mut self.stalled else { return };
        stalled.taken += bytes;
        if stalled.taken >= LEAST_TAKEN {
            self.stalled = None;
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Impatient<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.within_patience(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.within_patience(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// The server flushes when nothing of its own waits any more.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        self.stalled = None;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Impatient<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::task::JoinHandle;

    const PATIENCE: Duration = Duration::from_secs(2);

    /// Writes more than the other end takes without reading.
    fn write(bytes: usize) -> (DuplexStream, JoinHandle<io::Result<()>>) {
        let (ours, theirs) = duplex(16);
        let mut ours = Impatient::new(ours, PATIENCE);
        let writing = tokio::spawn(async move {
            ours.write_all(&vec![1; bytes]).await?;
            ours.flush().await
        });
        (theirs, writing)
    }

    #[tokio::test]
    async fn whoever_reads_nothing_or_a_byte_now_and_then_is_given_up() {
        for reads in [true, false] {
            let (mut theirs, writing) = write(2 * LEAST_TAKEN);
            while reads && !writing.is_finished() {
                theirs.read_u8().await.expect("a byte");
                tokio::time::sleep(PATIENCE / 20).await;
            }
            let error = writing.await.expect("no panic").expect_err("it is given up");
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        }
    }

    #[tokio::test]
    async fn whoever_takes_the_least_in_time_gets_everything() {
        let (mut theirs, writing) = write(3 * LEAST_TAKEN);
        let mut piece = vec![0; LEAST_TAKEN / 16];
        for _ in 0..3 * 16 {
            // Half of its time, so that a busy machine has the other half.
            tokio::time::sleep(PATIENCE / 32).await;
            theirs.read_exact(&mut piece).await.expect("a piece");
        }
        writing.await.expect("no panic").expect("all is taken");
    }

    #[tokio::test]
    async fn nothing_to_write_is_nothing_to_wait_for() {
        let (ours, mut theirs) = duplex(16);
        let mut ours = Impatient::new(ours, PATIENCE / 8);
        let mut piece = [0; 20];
        for _ in 0..3 {
            // Each is more than there is room for, so that it has to wait at first.
            let written = async {
                ours.write_all(&[1; 20]).await?;
                ours.flush().await
            };
            let (written, read) = tokio::join!(written, theirs.read_exact(&mut piece));
            written.and(read.map(drop)).expect("all of it");
            tokio::time::sleep(PATIENCE / 4).await;
        }
    }
}
