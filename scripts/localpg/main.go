// Command localpg starts and stops a private Postgres in the background, for
// the tests and the benchmark.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"strconv"

	"github.com/millracehq/millrace/internal/localpg"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "localpg:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	flags := flag.NewFlagSet("localpg start|stop|kill", flag.ExitOnError)
	dir := flags.String("dir", ".local/postgres", "directory of the server")
	fast := flags.Bool("fast", false, "do not sync to disk, for tests")
	stamps := flags.Bool("commit-timestamps", false, "record the time of each commit, to measure latency")
	version := flags.String("version", localpg.Version, "major version of Postgres")
	binaries := flags.String("binaries", "", "directory of an installed Postgres; empty to download one")
	connections := flags.Int("max-connections", 300, "maximum number of connections")

	if len(args) == 0 {
		flags.Usage()
		os.Exit(2)
	}

	if err := flags.Parse(args[1:]); err != nil {
		return err
	}

	ctx := context.Background()

	switch args[0] {
	case "start":
		parameters := map[string]string{"max_connections": strconv.Itoa(*connections), "shared_buffers": "256MB"}
		if *fast {
			parameters["fsync"], parameters["synchronous_commit"], parameters["full_page_writes"] = "off", "off", "off"
		}

		if *stamps {
			parameters["track_commit_timestamp"] = "on"
		}

		server, err := localpg.Start(ctx, *dir, localpg.Options{Version: *version, Settings: parameters, Binaries: *binaries},
			slog.New(slog.NewTextHandler(os.Stderr, nil)))
		if err != nil {
			return err
		}

		fmt.Println(server.URL())

		return nil
	case "stop", "kill":
		server, err := localpg.Find(*dir)
		if err != nil {
			return err
		}

		if args[0] == "kill" {
			return server.Kill(ctx)
		}

		return server.Stop(ctx)
	default:
		return fmt.Errorf("unknown command %s, expected start, stop or kill", args[0])
	}
}
