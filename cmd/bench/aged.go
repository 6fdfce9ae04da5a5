package main

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/broker"
)

// newAgedSite returns a site with many old inbox rows.
func (l *lab) newAgedSite(ctx context.Context, kind string) (*site, error) {
	if l.aged == nil {
		aged, err := l.newAged(ctx)
		if err != nil {
			return nil, err
		}

		l.aged = aged
	}

	return l.newSiteFrom(ctx, kind, l.aged.name)
}

// newAged creates a template database with inbox rows from the last few days.
func (l *lab) newAged(ctx context.Context) (*site, error) {
	s, err := l.newSite(ctx, broker.Embedded)
	if err != nil {
		return nil, err
	}

	if err := s.daysOfPast(ctx); err != nil {
		return nil, err
	}

	_, err = s.pool.Exec(ctx, fmt.Sprintf(`
		INSERT INTO inbox (consumer, message_id, day, fingerprint, applied_at)
		SELECT 'fulfilment.place', %s, (at AT TIME ZONE 'UTC')::date, n, at
		FROM (SELECT n, now() - (1 - n::float8 / %[2]d) * %[3]d * interval '1 day' AS at FROM generate_series(1, %[2]d) AS n) AS past`,
		idAt("at", "aged"), l.inboxRows, daysBack-1))
	if err != nil {
		return nil, fmt.Errorf("generating inbox rows: %w", err)
	}

	if _, err := s.pool.Exec(ctx, `VACUUM ANALYZE`); err != nil {
		return nil, err
	}

	s.pool.Close() // a template must not have open connections

	return s, nil
}

// hold begins a transaction that reads and then stays open until release is
// called, like a forgotten psql or a hung report.
func (s *site) hold(ctx context.Context) (release func(), err error) {
	conn, err := pgx.Connect(ctx, string(s.cfg.Postgres.URL))
	if err != nil {
		return nil, err
	}

	for _, statement := range []string{
		`SET idle_in_transaction_session_timeout = 0`,
		`BEGIN ISOLATION LEVEL REPEATABLE READ`,
		`SELECT count(*) FROM outbox`,
	} {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return nil, err
		}
	}

	return func() { _ = conn.Close(context.Background()) }, nil
}
