//! The HTTP API as its callers see it, without a socket.

mod consistency;
mod isolation;
mod orders;
mod push;
mod routes;
mod stream;
mod support;
