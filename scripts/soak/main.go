// Command soak shows that nothing is lost, applied twice or out of order per key while
// replicas of the service are killed, restarted, rebalanced and upgraded under load. It shares no
// code with the service: it writes the messages, reads the topics and queries the tables
// on its own.
package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// options are the flags.
type options struct {
	kind, address, database, service, previous, control, log string
	seed                                                     uint64
	orders, users, updates, kills, replicas, rate            int
}

func main() {
	var o options

	flag.StringVar(&o.kind, "broker", "", "kafka, rabbitmq or embedded")
	flag.StringVar(&o.address, "address", "", "host:port of Kafka, or the URL of RabbitMQ")
	flag.StringVar(&o.database, "database", "", "URL of an empty database")
	flag.StringVar(&o.service, "service", "bin/millrace", "the program to run")
	flag.StringVar(&o.previous, "previous", "", "program of the previous release: upgrade from it instead of killing replicas")
	flag.StringVar(&o.control, "control", "", "command that runs rabbitmqctl with its arguments")
	flag.StringVar(&o.log, "log", "", "file for the logs of the replicas")
	flag.Uint64Var(&o.seed, "seed", rand.Uint64N(1_000_000), "seed of the random choices")
	flag.IntVar(&o.orders, "orders", 6000, "orders, each sent twice")
	flag.IntVar(&o.users, "users", 60, "users")
	flag.IntVar(&o.updates, "updates", 40, "updates of each user")
	flag.IntVar(&o.kills, "kills", 20, "how many replicas are killed with SIGKILL")
	flag.IntVar(&o.replicas, "replicas", 3, "replicas of the service")
	flag.IntVar(&o.rate, "rate", 200, "messages a second during the rolling restart or upgrade")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	if err := soak(ctx, o); err != nil {
		fmt.Fprintf(os.Stderr, "soak: %v (seed %d, log in %s)\n", err, o.seed, o.log)
		os.Exit(1) //nolint:gocritic // stop only restores the signals
	}
}

func soak(ctx context.Context, o options) error {
	db, err := pgxpool.New(ctx, o.database)
	if err != nil {
		return err
	}
	defer db.Close()

	log, err := os.Create(filepath.Clean(o.log))
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // the replicas write to it

	r := &run{
		options: o, db: db, random: rand.New(rand.NewPCG(o.seed, 0)),
		fleet:  &fleet{program: cmp.Or(o.previous, o.service), log: log, environment: environment(o)},
		report: &report{out: os.Stdout}, began: time.Now(), sentAt: map[string]time.Time{},
	}
	defer r.fleet.killAll()

	r.sayf("seed %d", o.seed)

	if err := r.prepare(ctx); err != nil {
		return err
	}
	defer r.broker.close()

	if err := r.all(ctx); err != nil {
		return err
	}

	return r.report.err()
}

// environment configures the replicas.
func environment(o options) []string {
	return append(os.Environ(),
		"DATABASE_URL="+o.database,
		"MILLRACE_BROKER__KIND="+o.kind,
		"MILLRACE_BROKER__KAFKA__BROKERS="+o.address,
		"MILLRACE_BROKER__RABBITMQ__URL="+o.address,
		// Whether an update is a miss must not depend on how slow this machine is.
		"MILLRACE_CONSUMER__AWAIT_TIMEOUT=1h",
	)
}
