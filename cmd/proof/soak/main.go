// Package soak shows that nothing is lost, applied twice or out of order per key while
// replicas of the service are killed, restarted, rebalanced and upgraded under load. It shares no
// code with the service: it writes the messages, reads the topics and queries the tables
// on its own.
package soak

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/cmd/proof/replica"
	"github.com/millracehq/millrace/cmd/proof/server"
)

// options are the flags, and what the run has started.
type options struct {
	kind, service, previous                       string
	seed                                          uint64
	orders, users, updates, kills, replicas, rate int

	address, database, log string
}

// Kill runs the service under load while its replicas are killed and rebalanced.
func Kill(ctx context.Context, args []string) error {
	var o options

	flags := o.flags("proof soak")
	flags.IntVar(&o.users, "users", 60, "users")
	flags.IntVar(&o.updates, "updates", 40, "updates of each user")
	flags.IntVar(&o.kills, "kills", 20, "how many replicas are killed with SIGKILL")

	if err := flags.Parse(args); err != nil {
		return err
	}

	return soak(ctx, o)
}

// Upgrade replaces the replicas of the previous release with those of this one under load.
// Without a previous release, it restarts those of this one.
func Upgrade(ctx context.Context, args []string) error {
	var o options

	flags := o.flags("proof upgrade")
	flags.StringVar(&o.previous, "previous", "", "program of the previous release (default: that of -service)")

	if err := flags.Parse(args); err != nil {
		return err
	}

	o.previous = cmp.Or(o.previous, o.service)

	return soak(ctx, o)
}

func (o *options) flags(name string) *flag.FlagSet {
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.StringVar(&o.kind, "broker", "", "kafka, rabbitmq or embedded")
	flags.StringVar(&o.service, "service", "bin/millrace", "the program to run")
	flags.Uint64Var(&o.seed, "seed", rand.Uint64N(1_000_000), "seed of the random choices")
	flags.IntVar(&o.orders, "orders", 6000, "orders, each sent twice")
	flags.IntVar(&o.replicas, "replicas", 3, "replicas of the service")
	flags.IntVar(&o.rate, "rate", 200, "messages a second during the rolling restart or upgrade")

	return flags
}

// soak starts the servers and runs all phases. It keeps the directory of the servers, with
// all logs, if a check fails.
func soak(ctx context.Context, o options) (err error) {
	dir, err := server.NewDir()
	if err != nil {
		return err
	}

	defer func() {
		if err != nil {
			err = fmt.Errorf("%w (seed %d, logs and data in %s)", err, o.seed, dir)

			return
		}

		err = os.RemoveAll(dir)
	}()

	postgres, err := server.StartPostgres(ctx, dir, "max_connections=300", "shared_buffers=256MB", "track_commit_timestamp=on")
	if err != nil {
		return err
	}

	defer func() { err = errors.Join(err, postgres.Stop()) }()

	broker, err := server.StartBroker(ctx, o.kind, dir)
	if err != nil {
		return err
	}

	defer func() { err = errors.Join(err, broker.Kill(context.WithoutCancel(ctx))) }()

	o.database, o.address, o.log = postgres.URL("millrace"), broker.Address(), filepath.Join(dir, "service.log")

	return o.run(ctx, broker)
}

func (o *options) run(ctx context.Context, broker *server.Broker) error {
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
		options: *o, db: db, random: rand.New(rand.NewPCG(o.seed, 0)), server: broker,
		fleet:  &replica.Fleet{Program: cmp.Or(o.previous, o.service), Log: log, Environment: environment(*o)},
		report: &report{out: os.Stdout}, began: time.Now(), sentAt: map[string]time.Time{},
	}
	defer r.fleet.KillAll()

	r.sayf("seed %d", o.seed)

	if err := r.prepare(ctx); err != nil {
		return err
	}
	defer r.broker.Close()

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
