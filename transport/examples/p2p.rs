//! Point-to-point figures: throughput of a link where nothing is emulated, and how far a shaped transfer is from
//! `bytes / rate + latency`.
//!
//! `cargo run --release -p narrows-transport --example p2p`: two ranks on loopback, a thread each in one process.
#![allow(clippy::print_stdout)]

use narrows_transport::shape::{ResourceSpec, RouteSpec};
use narrows_transport::{JobKey, Mesh, MeshConfig, Shape, ShapeSpec, Tag};
use std::error::Error;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

fn main() -> Result<(), Box<dyn Error>> {
    unshaped()?;
    shaped()
}

fn unshaped() -> Result<(), Box<dyn Error>> {
    let (a, b) = pair(None)?;
    let (mut writer, mut reader) = plain_sockets()?;
    println!(
        "unshaped, one way (median of 5; floor: a plain blocking socket in turn with it; CPU: both ends)"
    );
    for bytes in [64, 4 << 10, 64 << 10, 1 << 20, 16 << 20, 64 << 20] {
        let count = ((256 << 20) / bytes).clamp(8, 20_000);
        let (mut link, mut floor) = (Vec::new(), Vec::new());
        for _ in 0..5 {
            link.push(cost(|| stream(&a, &b, bytes, count)));
            floor.push(cost(|| plain_stream(&mut writer, &mut reader, bytes, count)));
        }
        let gb = (bytes * count) as f64 / 1e9;
        let (link, floor) = (Cost::median(link), Cost::median(floor));
        println!(
            "  {bytes:>9} B x {count:<6} {:>7.3} GB/s, {:.2} of the floor; {:>7.2} us a message; CPU {:>6.2} s/GB, floor {:>6.2}",
            gb / link.wall_s,
            floor.wall_s / link.wall_s,
            link.wall_s / count as f64 * 1e6,
            link.cpu_s / gb,
            floor.cpu_s / gb,
        );
    }
    let s = median((0..3).map(|_| ping_pong(&a, &b, 1_000)));
    println!("  round trip of 8 B: {:.1} us", s * 1e6);
    Ok(())
}

struct Cost {
    wall_s: f64,
    cpu_s: f64,
}

impl Cost {
    fn median(costs: Vec<Cost>) -> Cost {
        let of = |what: fn(&Cost) -> f64| median(costs.iter().map(what));
        Cost { wall_s: of(|cost| cost.wall_s), cpu_s: of(|cost| cost.cpu_s) }
    }
}

fn cost(work: impl FnOnce()) -> Cost {
    let (wall, cpu_s) = (Instant::now(), process_cpu_s());
    work();
    Cost { wall_s: wall.elapsed().as_secs_f64(), cpu_s: process_cpu_s() - cpu_s }
}

fn process_cpu_s() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// `count` messages from a to b, each into the buffer of the one before.
fn stream(a: &Mesh, b: &Mesh, bytes: usize, count: usize) {
    let message = bytes::Bytes::from(vec![1u8; bytes]);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            (0..count).for_each(|_| a.send(1, Tag(1), message.clone()).expect("the peer receives"))
        });
        let mut into = Vec::new();
        (0..count).for_each(|_| b.recv(0, Tag(1), &mut into, far()).expect("the peer sends"));
    });
}

fn plain_stream(writer: &mut TcpStream, reader: &mut TcpStream, bytes: usize, count: usize) {
    let message = vec![1u8; bytes];
    std::thread::scope(|scope| {
        scope.spawn(|| (0..count).for_each(|_| writer.write_all(&message).expect("the peer reads")));
        let mut into = vec![0; bytes];
        (0..count).for_each(|_| reader.read_exact(&mut into).expect("the peer writes"));
    });
}

fn plain_sockets() -> std::io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let writer = TcpStream::connect(listener.local_addr()?)?;
    writer.set_nodelay(true)?;
    Ok((writer, listener.accept()?.0))
}

/// Seconds a round trip.
fn ping_pong(a: &Mesh, b: &Mesh, rounds: u32) -> f64 {
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut into = Vec::new();
            for _ in 0..rounds {
                b.recv(0, Tag(2), &mut into, far()).expect("the peer sends");
                b.send(0, Tag(2), vec![0; 8]).expect("the peer receives");
            }
        });
        let mut into = Vec::new();
        for _ in 0..rounds {
            a.send(1, Tag(2), vec![0; 8]).expect("the peer receives");
            a.recv(1, Tag(2), &mut into, far()).expect("the peer sends");
        }
    });
    start.elapsed().as_secs_f64() / f64::from(rounds)
}

fn shaped() -> Result<(), Box<dyn Error>> {
    println!("shaped, wall time of send to recv against bytes / rate + latency (median and worst of 5)");
    for (rate_bit_per_s, latency_s) in
        [(10e6, 0.02), (100e6, 0.02), (100e6, 0.0), (1e9, 0.005), (2.5e9, 0.001), (5e9, 0.001), (10e9, 0.001)]
    {
        let dir = tempfile::tempdir()?;
        let shape = Shape::open(&one_way(rate_bit_per_s / 8.0, latency_s), &dir.path().join("clocks"))?;
        let (a, b) = pair(Some(shape))?;
        for target_s in [0.05, 0.5] {
            let bytes = (target_s * rate_bit_per_s / 8.0) as usize;
            let expected_s = bytes as f64 * 8.0 / rate_bit_per_s + latency_s;
            let (message, mut into) = (bytes::Bytes::from(vec![1u8; bytes]), Vec::new());
            // Two to warm up: the receiver's buffers are then in place, as they are in training.
            let transfers = (0..7).map(|_| transfer(&a, &b, &message, &mut into)).skip(2);
            let mut errors: Vec<f64> = transfers.map(|s| (s / expected_s - 1.0) * 100.0).collect();
            errors.sort_by(f64::total_cmp);
            println!(
                "  {:>7} Mbit/s + {:>4} ms: {bytes:>10} B, expected {:>7.1} ms, error {:+.2} % (worst {:+.2} %)",
                rate_bit_per_s / 1e6,
                latency_s * 1e3,
                expected_s * 1e3,
                errors[2],
                errors[4]
            );
        }
    }
    Ok(())
}

fn transfer(a: &Mesh, b: &Mesh, message: &bytes::Bytes, into: &mut Vec<u8>) -> f64 {
    let start = Instant::now();
    a.send(1, Tag(1), message.clone()).expect("the peer receives");
    b.recv(0, Tag(1), into, far()).expect("the peer sends");
    start.elapsed().as_secs_f64()
}

fn one_way(rate_bytes_per_s: f64, latency_s: f64) -> ShapeSpec {
    ShapeSpec {
        resources: vec![ResourceSpec { name: "nic".into(), rate_bytes_per_s }],
        routes: vec![RouteSpec { from: 0, to: 1, resources: vec![0], latency_s, loss: 0.0 }],
    }
}

fn pair(shape: Option<Shape>) -> Result<(Mesh, Mesh), Box<dyn Error>> {
    let bind = |rank| {
        let mut config =
            MeshConfig::new(rank, 2, JobKey::new([1; 32]), SocketAddr::from(([127, 0, 0, 1], 0)));
        config.shape = shape.clone();
        Mesh::bind(config)
    };
    let (lower, upper) = (bind(0)?, bind(1)?);
    let peers = [(0, lower.address()), (1, upper.address())];
    std::thread::scope(|scope| {
        let upper = scope.spawn(|| upper.connect(&peers, far()));
        let lower = lower.connect(&peers, far())?;
        Ok((lower, upper.join().expect("connecting does not panic")?))
    })
}

fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn far() -> Instant {
    Instant::now() + Duration::from_secs(60)
}
