package postgres

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// shareSessions makes the connections of a pool go through a pooler that gives its
// clients a server session for one transaction at a time. Work that needs a session of
// its own uses Connect, which goes to the server itself.
func shareSessions(cfg *pgxpool.Config, direct *pgx.ConnConfig) {
	pooled := cfg.ConnConfig
	// A prepared statement exists in one session only.
	if pooled.DefaultQueryExecMode == pgx.QueryExecModeCacheStatement {
		pooled.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
	}

	s := configure(pooled)
	pooled.ValidateConnect = s.beginShared

	cfg.ConnConfig = direct
	cfg.BeforeConnect = func(_ context.Context, conn *pgx.ConnConfig) error {
		*conn = *pooled.Copy()

		return nil
	}
}

// beginShared refuses a connection that the service cannot work with. Parameters set here
// would affect other clients instead of this one, so the role must have the settings.
func (s *session) beginShared(ctx context.Context, conn *pgconn.PgConn) error {
	if _, err := s.checkServer(ctx, conn); err != nil {
		return err
	}

	differing, err := s.differing(ctx, conn)
	if err != nil {
		return err
	}

	if len(differing) > 0 {
		var role string
		if err := queryRow(ctx, conn, `SELECT quote_ident(session_user)`, &role); err != nil {
			return err
		}

		return &SetupError{fmt.Sprintf("postgres.direct_url is set, so postgres.url points to a pooler that shares sessions, and the role %s must have the service's settings. "+
			"Run these statements, then RECONNECT in PgBouncer's console:\n%s", role, alterations(role, differing))}
	}

	// The pooler reports what it remembers, not what the server says in a transaction.
	conn.CustomData()[staleReport] = true

	return nil
}

// differing returns the settings that sessions do not have. To compare values as the
// server writes them, so that 60s equals 1min, it sets them in a transaction and rolls
// back.
func (s *session) differing(ctx context.Context, conn *pgconn.PgConn) (map[string]string, error) {
	_, err := conn.Exec(ctx, `BEGIN`).ReadAll()
	if refused, ok := errors.AsType[*pgconn.PgError](err); ok && refused.Code == protocolViolation {
		return nil, &SetupError{"postgres.url points to a pooler that does not support transactions (PgBouncer with pool_mode = statement): use pool_mode = transaction or session"}
	}

	if err != nil {
		return nil, fmt.Errorf("checking the session's parameters: %w", err)
	}

	list := values(s.settings)

	results, err := conn.Exec(ctx, `
		SELECT name, current_setting(name, true) FROM (VALUES `+list+`) AS s (name, value);
		`+assignment(s.settings, true)+`;
		SELECT name, current_setting(name, true) FROM (VALUES `+list+`) AS s (name, value);
		ROLLBACK`).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("checking the session's parameters: %w", err)
	}

	before, after := results[0].Rows, results[2].Rows
	differing := map[string]string{}

	for i, row := range before {
		if name := string(row[0]); string(row[1]) != string(after[i][1]) {
			differing[name] = s.settings[name]
		}
	}

	return differing, nil
}

// protocolViolation is the SQLSTATE with which PgBouncer refuses BEGIN.
const protocolViolation = "08P01"

func alterations(role string, settings map[string]string) string {
	var list strings.Builder

	for _, name := range slices.Sorted(maps.Keys(settings)) {
		fmt.Fprintf(&list, "ALTER ROLE %s SET %s = '%s';\n", role, name, strings.ReplaceAll(settings[name], "'", "''"))
	}

	return list.String()
}
