//! Runs the router on a listener until told to stop.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::router::{AppState, build};

/// How often recorded histograms are folded, so that memory stays bounded when nobody scrapes.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// Serves `state` on `listener` until `shutdown` resolves; then takes no new connections, ends the
/// streams and lets open requests finish within [`super::Limits::shutdown_grace`].
pub async fn serve(
    listener: TcpListener,
    state: AppState,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let closing = Arc::new(watch::Sender::new(false));
    let (grace, upkeep) = (state.limits.shutdown_grace, state.metrics.clone());
    let places = Arc::new(Semaphore::new(state.limits.connections_max));
    let listener = Bounded { listener, places };
    let close = closing.clone();
    let stopped = async move {
        shutdown.await;
        close.send_replace(true);
    };
    let mut stopping = closing.subscribe();
    let overdue = async move {
        // The sender lives in the router, so this only ends by the value.
        let _ = stopping.wait_for(|closing| *closing).await;
        tokio::time::sleep(grace).await;
    };
    let fold = async move {
        let Some(handle) = upkeep else { return std::future::pending::<()>().await };
        let mut every = tokio::time::interval(UPKEEP_EVERY);
        loop {
            every.tick().await;
            handle.run_upkeep();
        }
    };
    let server = axum::serve(listener, build(state, closing)).with_graceful_shutdown(stopped);
    tokio::select! {
        ended = server.into_future() => ended,
        () = overdue => {
            tracing::warn!(grace_s = grace.as_secs(), "requests still open at shutdown were cut");
            Ok(())
        }
        () = fold => Ok(()),
    }
}

/// Accepts a connection only when there is a place for it; the rest wait in the system's backlog.
struct Bounded {
    listener: TcpListener,
    places: Arc<Semaphore>,
}

impl Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let place = self.places.clone().acquire_owned().await.ok();
        let (stream, peer) = Listener::accept(&mut self.listener).await;
        // Small answers should leave at once; a socket that refuses the option still works.
        let _ = stream.set_nodelay(true);
        (Connection { stream, _place: place }, peer)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that gives its place back when it ends.
struct Connection {
    stream: TcpStream,
    _place: Option<OwnedSemaphorePermit>,
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
