package soak

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

const (
	// maxLatency is how long 99 of 100 orders may take from being sent to being completed
	// while replicas are being replaced.
	maxLatency = time.Second
	// besides is how long replicas of both releases run side by side.
	besides = 10 * time.Second
)

// upgrade replaces the replicas of the previous release, or of this one, under a steady
// load: it migrates the database while the old replicas are serving, starts and stops one
// replica after the other, as an orchestrator does, and at the end runs a replica of the
// previous release alongside the new ones, as during a rollback.
func (r *run) upgrade(ctx context.Context) error {
	load := anonymous(newLoad("upgrade", sizes{orders: r.rate * 80, users: 40, updates: r.rate * 80 / 40, products: products}, r.random))

	begin, err := r.ends()
	if err != nil {
		return err
	}

	r.sayf("%d replicas of %s, %d messages a second", r.replicas, r.old(), r.rate)

	stop := r.publishSteadily(ctx, load)

	if err := errors.Join(r.pause(ctx, besides), r.migrate(ctx)); err != nil {
		return err
	}

	from := time.Now()

	if err := r.replace(ctx); err != nil {
		return err
	}

	to := time.Now()

	if err := r.rollBack(ctx); err != nil {
		return err
	}

	if err := stop(); err != nil {
		return err
	}

	if err := errors.Join(r.latencies(ctx, from, to), r.keyGaps(ctx)); err != nil {
		return err
	}

	if r.kafka != nil {
		if err := r.gaps(ctx, begin); err != nil {
			return err
		}
	}

	return errors.Join(r.finish(ctx), r.audit(ctx))
}

// old names the release of the replicas that are replaced.
func (r *run) old() string {
	if r.previous == r.service {
		return "this release"
	}

	return "the previous release"
}

// migrate applies the migrations of this release while the previous one is serving.
func (r *run) migrate(ctx context.Context) error {
	const applied = `SELECT count(*) FROM goose_db_version WHERE version_id > 0`

	var before, after int

	began := time.Now()

	err := r.db.QueryRow(ctx, applied).Scan(&before)
	if err != nil {
		return err
	}

	if _, err := r.command(ctx, r.service, "migrate", "up"); err != nil {
		return err
	}

	if err := r.db.QueryRow(ctx, applied).Scan(&after); err != nil {
		return err
	}

	r.sayf("applied %d migrations in %.1f s while %s served", after-before, time.Since(began).Seconds(), r.old())

	return r.pause(ctx, brief)
}

// replace starts a replica of this release and then stops an old one, until no old one is
// left.
func (r *run) replace(ctx context.Context) error {
	r.fleet.Program = r.service

	for i := range r.replicas {
		if err := errors.Join(r.fleet.Start(ctx, 1), r.pause(ctx, brief), r.fleet.Stop(0)); err != nil {
			return err
		}

		r.sayf("replica %d of %d replaced", i+1, r.replicas)

		if err := r.pause(ctx, besides); err != nil {
			return err
		}
	}

	return nil
}

// rollBack runs a replica of the previous release alongside those of this one.
func (r *run) rollBack(ctx context.Context) error {
	r.fleet.Program = r.previous
	defer func() { r.fleet.Program = r.service }()

	r.sayf("a replica of %s beside %d of this one", r.old(), r.replicas)

	return errors.Join(r.fleet.Start(ctx, 1), r.pause(ctx, besides), r.fleet.Stop(r.replicas), r.pause(ctx, brief))
}

// latencies checks how long the orders that were sent between from and to took. On Kafka it
// only prints that if there are replicas of the previous release: all members of a consumer
// group wait for the slowest.
func (r *run) latencies(ctx context.Context, from, to time.Time) error {
	rows, err := r.db.Query(ctx, `SELECT id, pg_xact_commit_timestamp(xmin) FROM orders WHERE status = 'completed'`)
	if err != nil {
		return err
	}

	var (
		order  string
		done   time.Time
		took   []time.Duration
		before []time.Duration
	)

	if _, err := pgx.ForEachRow(rows, []any{&order, &done}, func() error {
		switch sent := r.sentAt[order]; {
		case sent.Before(from):
			before = append(before, done.Sub(sent))
		case sent.Before(to):
			took = append(took, done.Sub(sent))
		}

		return nil
	}); err != nil {
		return err
	}

	if len(took) == 0 || len(before) == 0 {
		return errors.New("no order was completed during or before the rolling restart")
	}

	p99 := quantile(took, 0.99)
	measured := fmt.Sprintf("p99 of created to completed %.3f s for %s orders in %.0f s (median %.3f, longest %.2f; before, p99 %.3f)",
		p99.Seconds(), grouped(len(took)), to.Sub(from).Seconds(), quantile(took, 0.5).Seconds(), slices.Max(took).Seconds(), quantile(before, 0.99).Seconds())

	if r.kafka != nil && r.previous != r.service {
		r.sayf("upgrade: %s", measured)

		return nil
	}

	var slow []string
	if p99 >= maxLatency {
		slow = append(slow, fmt.Sprintf("%.2f s", p99.Seconds()))
	}

	r.report.that(fmt.Sprintf("replacing replicas of %s: %s, expected less than %s", r.old(), measured, maxLatency), slow)

	return nil
}

// quantile sorts list and returns its quantile q.
func quantile(list []time.Duration, q float64) time.Duration {
	slices.Sort(list)

	return list[min(len(list)-1, int(q*float64(len(list))))]
}

// keyGaps prints the longest time in which no message of a user was applied, although at
// least one had been sent.
func (r *run) keyGaps(ctx context.Context) error {
	rows, err := r.db.Query(ctx, `
		SELECT substr(stream, 6), message_id, pg_xact_commit_timestamp(xmin) FROM events WHERE stream LIKE 'user-%'`)
	if err != nil {
		return err
	}

	var (
		user    string
		id      uuid.UUID
		applied time.Time
		keys    = map[string][]application{}
	)

	if _, err := pgx.ForEachRow(rows, []any{&user, &id, &applied}, func() error {
		keys[user] = append(keys[user], application{written: r.sentAt[id.String()], applied: applied})

		return nil
	}); err != nil {
		return err
	}

	var (
		longest time.Duration
		key     string
	)

	for user, list := range keys {
		if gap := longestGap(list); gap > longest {
			longest, key = gap, user
		}
	}

	r.sayf("longest gap of a key: %.2f s (%s), of %d keys with several messages", longest.Seconds(), key, len(keys))

	return nil
}

// audit runs the service's own audit.
func (r *run) audit(ctx context.Context) error {
	out, err := r.command(ctx, r.service, "audit")

	var violations []string
	if err != nil {
		violations = strings.Split(strings.TrimSpace(out), "\n")
	}

	r.report.that("millrace audit finds no violation", violations)

	return nil
}
