package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// Failover kills the server and puts a standby in its place, as a managed Postgres does: a
// server that takes no writes answers at the same address, and after readOnly it is
// promoted. Replication is synchronous from before the kill, so no commit that was
// answered is missing. If the standby does not come up, the old server starts again.
func (p *Postgres) Failover(ctx context.Context, readOnly time.Duration) error {
	standby, err := p.standby(ctx)
	if err != nil {
		return err
	}

	old := *p

	if err := p.replicate(ctx); err != nil {
		_, asynchronous := p.ask(context.WithoutCancel(ctx), `ALTER SYSTEM RESET synchronous_standby_names`, `SELECT pg_reload_conf()::text`)

		return errors.Join(err, asynchronous, standby.Kill(), os.RemoveAll(standby.Dir))
	}

	// From here on a failover that has begun ends, whatever happens to the run.
	ctx = context.WithoutCancel(ctx)

	if err := errors.Join(p.Kill(), standby.Stop()); err != nil {
		return err
	}

	standby.port = p.port
	standby.settings = p.settings
	*p = *standby

	err = p.Start(ctx)
	if err == nil {
		time.Sleep(readOnly)

		_, err = p.ask(ctx, `SELECT pg_promote()::text`)
	}

	if err != nil {
		err = errors.Join(fmt.Errorf("promoting the standby: %w", err), p.Kill())
		*p, old = old, *p
		err = errors.Join(err, os.WriteFile(filepath.Join(p.Dir, "postgresql.auto.conf"), nil, 0o600), p.Start(ctx))
	}

	return errors.Join(err, os.RemoveAll(old.Dir))
}

// standby starts a server on a port of its own with a backup of p, which it follows.
func (p *Postgres) standby(ctx context.Context) (*Postgres, error) {
	port, err := FreePort()
	if err != nil {
		return nil, err
	}

	s := *p
	s.Dir, s.port, s.cmd, s.ended = fmt.Sprintf("%s-%d", p.Dir, port), port, nil, nil

	if err := p.backup(ctx, s.Dir); err != nil {
		return nil, errors.Join(err, os.RemoveAll(s.Dir))
	}

	password, _ := p.user.Password()
	s.settings = append(slices.Clone(p.settings), fmt.Sprintf("primary_conninfo=host=127.0.0.1 port=%d user=%s password=%s", p.port, p.user.Username(), password))

	if err := s.Start(ctx); err != nil {
		return nil, errors.Join(err, s.Kill(), os.RemoveAll(s.Dir))
	}

	return &s, nil
}

// backup copies the data of the running server to dir, for a standby.
func (p *Postgres) backup(ctx context.Context, dir string) error {
	conn, err := pgx.Connect(ctx, p.URL("postgres"))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()

	if _, err := conn.Exec(ctx, `SELECT pg_backup_start('standby', true)`); err != nil {
		return err
	}

	// Files that disappear meanwhile are no failure: recovery does without them.
	_ = copyData(ctx, p.Dir, dir)

	var label string
	if err := conn.QueryRow(ctx, `SELECT labelfile FROM pg_backup_stop(false)`).Scan(&label); err != nil {
		return err
	}

	// The standby fetches the log from the server, instead of reading files that were copied
	// while they were written.
	segments, err := filepath.Glob(filepath.Join(dir, "pg_wal", "0*"))
	if err != nil {
		return err
	}

	for _, path := range append(segments, filepath.Join(dir, "postmaster.pid")) {
		if err := os.Remove(path); err != nil {
			return err
		}
	}

	for name, text := range map[string]string{"backup_label": label, "standby.signal": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return err
		}
	}

	out, err := exec.CommandContext(ctx, "chown", "--reference="+filepath.Join(dir, "PG_VERSION"),
		filepath.Join(dir, "backup_label"), filepath.Join(dir, "standby.signal")).CombinedOutput()
	if err != nil {
		return fmt.Errorf("changing the owner of a backup: %w: %s", err, out)
	}

	return nil
}

// replicate makes commits wait for the standby, and returns once all that was committed
// before is there too.
func (p *Postgres) replicate(ctx context.Context) error {
	if _, err := p.ask(ctx, `ALTER SYSTEM SET synchronous_standby_names = '*'`, `SELECT pg_reload_conf()::text`); err != nil {
		return err
	}

	return Until(ctx, "a standby to replicate", patience, func() (bool, error) {
		state, err := p.ask(ctx, `SELECT coalesce(string_agg(sync_state, ','), '') FROM pg_stat_replication WHERE state = 'streaming'`)
		if err != nil || state != "sync" {
			return false, err
		}

		before, err := p.ask(ctx, `SELECT pg_current_wal_lsn()::text`)
		if err != nil {
			return false, err
		}

		there, err := p.ask(ctx, fmt.Sprintf(`SELECT (flush_lsn >= '%s')::text FROM pg_stat_replication`, before))

		return there == "true", err
	})
}

// ask executes statements and returns the text that the last one returns.
func (p *Postgres) ask(ctx context.Context, statements ...string) (answer string, err error) {
	conn, err := pgx.Connect(ctx, p.URL("postgres"))
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()

	for _, sql := range statements {
		if !strings.HasPrefix(sql, "SELECT") {
			if _, err := conn.Exec(ctx, sql); err != nil {
				return "", err
			}

			continue
		}

		if err := conn.QueryRow(ctx, sql).Scan(&answer); err != nil {
			return "", err
		}
	}

	return answer, nil
}
