//! The daemon under a service manager: what it tells systemd, and how it logs to its journal. The
//! sockets are the test's own; the messages are those of sd_notify(3) and of the journal's protocol.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;

use tokio::net::UnixDatagram;
use tokio::process::{Child, Command};

use crate::cli::{run, taskbell};
use crate::support::TestDatabase;

fn terminate(child: &Child) {
    let id = child.id().unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
}

/// The next message that has such a line.
async fn hear(socket: &UnixDatagram, wanted: impl Fn(&str) -> bool) -> String {
    let heard = async {
        loop {
            let mut message = vec![0; 64 * 1024];
            let length = socket.recv(&mut message).await.unwrap();
            let message = String::from_utf8_lossy(&message[..length]).into_owned();
            if message.lines().any(&wanted) {
                return message;
            }
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), heard).await.expect("it was never said")
}

/// An address that no other test binds, nor any connection takes before we do.
fn address() -> String {
    let [.., high, low] = std::process::id().to_be_bytes();
    format!("127.64.{high}.{low}:9464")
}

#[tokio::test]
async fn systemd_hears_that_it_is_ready_that_it_moves_and_that_it_stops() {
    let database = TestDatabase::migrated().await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    let address = address();
    let of_daemon = |arguments: &[&str]| {
        let mut command = taskbell(Some(&database), arguments);
        command.env("TASKBELL_ADMIN__LISTEN", &address).stderr(Stdio::null());
        command
    };
    assert_eq!(run(of_daemon(&["health"])).await.code, 2, "nobody is there yet");
    let mut command = of_daemon(&["run"]);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "600000").env("TASKBELL_WORKER__GRACE", "5s");
    let mut daemon = command.spawn().unwrap();

    hear(&socket, |line| line == "STATUS=listening and delivering").await;
    hear(&socket, |line| line == "READY=1").await;
    // Not soon, but now: the doorbell is subscribed and the outbox was read.
    let ready = run(of_daemon(&["health", "--ready"])).await;
    assert_eq!((ready.code, ready.out.contains("\"listener\":true")), (0, true), "{ready:?}");
    assert_eq!(run(of_daemon(&["health"])).await.code, 0);
    // Idle: the worker looks every 30 s, the watchdog wants to hear of it every 0.6 s.
    for _ in 0..5 {
        hear(&socket, |line| line == "WATCHDOG=1").await;
    }
    terminate(&daemon);
    let stopping = hear(&socket, |line| line == "STOPPING=1").await;
    assert!(stopping.contains("EXTEND_TIMEOUT_USEC=20000000\n"), "{stopping}");
    assert!(daemon.wait().await.unwrap().success());
}

#[tokio::test]
async fn the_journal_gets_priorities_and_fields() {
    // In a mount namespace the test may put a socket where the journal's is.
    // Root can; others need a user namespace too.
    let ways: [&[&str]; 2] = [&["--mount"], &["--mount", "--map-root-user"]];
    let works = |way: &&&[&str]| {
        let tried =
            std::process::Command::new("unshare").args(**way).arg("true").stderr(Stdio::null()).status();
        tried.is_ok_and(|status| status.success())
    };
    let Some(way) = ways.iter().find(works) else {
        eprintln!("SKIPPED: no mount namespace can be made here (unshare --mount --map-root-user)");
        return;
    };
    let database = TestDatabase::migrated().await;
    let directory = tempfile::tempdir().unwrap();
    let socket = UnixDatagram::bind(directory.path().join("socket")).unwrap();
    let stderr = File::create(directory.path().join("stderr")).unwrap();
    let stream = stderr.metadata().unwrap();
    let script = "mount -t tmpfs none /run && mkdir -p /run/systemd && ln -s \"$1\" /run/systemd/journal && \
                  exec \"$2\" run";
    let mut command = Command::new("unshare");
    command.args(*way).args(["sh", "-c", script, "sh"]).arg(directory.path());
    command.arg(env!("CARGO_BIN_EXE_taskbell")).env("DATABASE_URL", &database.dsn);
    command.env("JOURNAL_STREAM", format!("{}:{}", stream.dev(), stream.ino()));
    command.env("TASKBELL_ADMIN__LISTEN", "127.0.0.1:0").stderr(stderr).kill_on_drop(true);
    let mut daemon = command.spawn().unwrap();

    let entry = hear(&socket, |line| line.ends_with("taskbell runs")).await;
    // The name, the length in eight bytes, the value.
    for (name, value) in [("PRIORITY", "6"), ("SYSLOG_IDENTIFIER", "taskbell"), ("MESSAGE", "taskbell runs")]
    {
        let length = char::from(u8::try_from(value.len()).unwrap());
        assert!(entry.contains(&format!("{name}\n{length}\0\0\0\0\0\0\0{value}\n")), "{name}: {entry:?}");
    }
    assert!(entry.contains("TASKBELL_ADMIN\n"), "{entry:?}");
    terminate(&daemon);
    assert!(daemon.wait().await.unwrap().success());
    assert_eq!(std::fs::read_to_string(directory.path().join("stderr")).unwrap(), "");
}
