//! The programs, and the load that each is put under.
//!
//! Commands are for `sh`, in an empty folder. They find `$LOADS`, the folder `xtask/loads`, `$ROOT`, this workspace, and `$PORT`, a free
//! TCP port; servers listen there on loopback, or on a socket in the folder.

/// A program and its load.
pub(crate) struct Program {
    pub(crate) name: &'static str,
    /// Debian packages.
    pub(crate) packages: &'static [&'static str],
    /// Writes its version in its first line.
    pub(crate) version: &'static str,
    /// What it does, in words.
    pub(crate) does: &'static str,
    /// Done before, and not profiled.
    pub(crate) prepare: &'static str,
    /// What is profiled, with its children.
    pub(crate) run: Run,
    /// Least share of complete user stacks, per cent.
    pub(crate) bar: f64,
}

/// What is profiled.
pub(crate) enum Run {
    /// A command that runs for ever.
    Endless(&'static str),
    /// A command that is started again and again.
    Again(&'static str),
    /// A server and a client, which is started again and again. The server is up when `ready` succeeds.
    Served {
        server: &'static str,
        ready: &'static str,
        client: &'static str,
    },
}

const BAR: f64 = 99.9;

/// The programs of the table, in its order.
pub(crate) const PROGRAMS: &[Program] = &[
    Program {
        name: "redis",
        packages: &["redis-server", "redis-tools"],
        version: "redis-server --version | cut -d' ' -f 1-3",
        does: "redis-benchmark: get, set, lists, sorted sets, ranges, pipelined",
        prepare: "",
        run: Run::Served {
            server: "exec redis-server --port 0 --unixsocket redis.sock --save 5 10",
            ready: "redis-cli -s redis.sock ping",
            client: "redis-benchmark -s redis.sock -n 100000 -r 100000 -P 8 -q",
        },
        bar: BAR,
    },
    Program {
        name: "nginx",
        packages: &["nginx-light", "apache2-utils"],
        version: "nginx -v 2>&1",
        does: "ab: small and large files, gzip, kept alive and not",
        prepare: "sed s/PORT/$PORT/ $LOADS/nginx.conf > nginx.conf; cp $LOADS/load.py small.txt; seq 100000 > large.txt; chmod 755 .",
        run: Run::Served {
            server: "exec nginx -p . -c nginx.conf",
            ready: "ab -n 1 http://127.0.0.1:$PORT/small.txt",
            client: "ab -q -k -c 8 -n 50000 http://127.0.0.1:$PORT/small.txt; \
                     ab -q -c 4 -n 10000 http://127.0.0.1:$PORT/none; \
                     ab -q -c 4 -n 200 -H 'Accept-Encoding: gzip' http://127.0.0.1:$PORT/large.txt",
        },
        bar: BAR,
    },
    Program {
        name: "postgres",
        packages: &["postgresql"],
        version: "postgres --version",
        does: "pgbench: its own transactions, and sorting, joins and JSON",
        prepare: "chown postgres .; setpriv --reuid=postgres --regid=postgres --clear-groups initdb -D data",
        run: Run::Served {
            server: "exec setpriv --reuid=postgres --regid=postgres --clear-groups \
                     postgres -D data -k $PWD -c listen_addresses=",
            ready: "pgbench -h $PWD -U postgres -i -s 5 postgres",
            client: "pgbench -h $PWD -U postgres -c 4 -T 2 postgres; \
                     pgbench -h $PWD -U postgres -c 2 -T 2 -f $LOADS/load.pgbench postgres",
        },
        bar: BAR,
    },
    Program {
        name: "sqlite",
        packages: &["sqlite3"],
        version: "sqlite3 --version | cut -d' ' -f 1",
        does: "inserts, an index, joins, aggregates, a recursive query",
        prepare: "",
        run: Run::Endless("yes \".read $LOADS/load.sql\" | sqlite3 db"),
        bar: BAR,
    },
    Program {
        name: "python3",
        packages: &["python3"],
        version: "/usr/bin/python3 --version",
        does: "JSON, regular expressions, sorting, zlib, recursion, callbacks out of `qsort`",
        prepare: "",
        run: Run::Endless("exec /usr/bin/python3 $LOADS/load.py"),
        bar: BAR,
    },
    Program {
        name: "perl",
        packages: &["perl"],
        version: "perl -e 'print \"perl $^V\"'",
        does: "hashes, regular expressions, sorting, recursion, `die`",
        prepare: "",
        run: Run::Endless("exec perl $LOADS/load.pl"),
        bar: BAR,
    },
    Program {
        name: "ruby",
        packages: &["ruby"],
        version: "ruby --version",
        does: "JSON, regular expressions, sorting, exceptions, fibers",
        prepare: "",
        run: Run::Endless("exec ruby $LOADS/load.rb"),
        bar: BAR,
    },
    Program {
        name: "php",
        packages: &["php-cli"],
        version: "php --version",
        does: "JSON, regular expressions, sorting, zlib, recursion",
        prepare: "",
        run: Run::Endless("exec php $LOADS/load.php"),
        // Regular expressions run in code that PCRE2 makes, without tables and without frame pointers.
        bar: 98.0,
    },
    Program {
        name: "node",
        packages: &["nodejs"],
        version: "echo node $(node --version)",
        does: "JSON, sorting, regular expressions, exceptions, promises, zlib, by V8's compilers",
        prepare: "",
        run: Run::Endless("exec node $LOADS/load.js"),
        bar: BAR,
    },
    Program {
        name: "java",
        packages: &["default-jdk-headless"],
        version: "java --version",
        does: "`-XX:+PreserveFramePointer`: javac, then streams, sorting, maps, exceptions, on all threads",
        prepare: "",
        run: Run::Endless("exec java -XX:+PreserveFramePointer $LOADS/Load.java"),
        bar: BAR,
    },
    Program {
        name: "gcc",
        packages: &["g++"],
        version: "gcc --version",
        does: "g++ -O2 of a file of templates, assembled and linked",
        prepare: "",
        run: Run::Again("g++ -std=c++17 -O2 -g $LOADS/load.cpp -o load"),
        bar: BAR,
    },
    Program {
        name: "clang",
        packages: &["clang", "g++"],
        version: "clang --version",
        does: "clang++ -O2 of the same",
        prepare: "",
        run: Run::Again("clang++ -std=c++17 -O2 -g $LOADS/load.cpp -o load"),
        bar: BAR,
    },
    Program {
        name: "rustc",
        packages: &["rustc-web"],
        version: "/usr/bin/rustc --version",
        does: "rustc -O of a program of this project, linked",
        prepare: "",
        run: Run::Again("/usr/bin/rustc -O -g --edition 2021 $ROOT/flamegraphs/workloads/src/bin/words.rs"),
        bar: BAR,
    },
    Program {
        name: "xz",
        packages: &["xz-utils"],
        version: "xz --version",
        does: "xz -9 on two threads, and unpacking",
        prepare: "for i in 1 2 3 4 5 6 7 8; do cat /bin/bash /usr/bin/perl /usr/bin/openssl; done > data",
        run: Run::Endless("xz -9 -T2 --block-size=4MiB -c data | xz -d > copy"),
        bar: BAR,
    },
    Program {
        name: "openssl",
        packages: &["openssl"],
        version: "openssl version",
        does: "openssl speed: AES-GCM, beside it SHA, ChaCha20, AES-CBC, RSA, P-256, X25519, Ed25519",
        prepare: "",
        run: Run::Endless(
            "openssl speed -seconds 60 -bytes 4096 -evp aes-256-gcm & \
             exec openssl speed -seconds 1 -bytes 4096 sha1 sha256 sha512 aes-128-cbc rsa2048 ecdsap256 ecdhx25519 ed25519 ghash",
        ),
        bar: BAR,
    },
    Program {
        name: "go build",
        packages: &["golang-go"],
        version: "go version",
        does: "go build of a program with the parts of the standard library that it needs",
        prepare: "cp $LOADS/load.go .",
        run: Run::Again("go build -a -o load load.go"),
        bar: 99.0,
    },
    Program {
        name: "go program",
        packages: &["golang-go"],
        version: "go version",
        does: "JSON, maps, sorting, regular expressions, gzip, panics, on three goroutines",
        prepare: "cp $LOADS/load.go .; go build -o load load.go",
        run: Run::Endless("exec ./load"),
        bar: 99.0,
    },
    Program {
        name: "git",
        packages: &["git"],
        version: "git --version",
        does: "log -p, blame, repack, clone of this project's history",
        prepare: "git clone -q --no-local $ROOT repository",
        run: Run::Again(
            "cd repository; git log -p -M -C --stat > ../log; git blame -C -C README.md > ../blame; git repack -adfq --depth=50; \
             git grep -n -E 'fn [a-z]+_of' $(git rev-list -20 HEAD) > ../grep; rm -rf ../copy; git clone -q --no-local . ../copy",
        ),
        bar: BAR,
    },
];
