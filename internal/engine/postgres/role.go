package postgres

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pressly/goose/v3"

	"github.com/millracehq/millrace/migrations"
)

// versionTable is where goose records the applied migrations.
const versionTable = goose.DefaultTablename

// gap is a privilege that the role lacks on an object.
type gap struct {
	Object    string // as in GRANT, for example TABLE public.orders
	Privilege string
	Role      string
	Owner     string
}

// CheckSchema returns an error if the schema is not this program's, or if the role lacks
// privileges that serving needs. The error lists the statements that grant all missing
// privileges.
func CheckSchema(ctx context.Context, pool *pgxpool.Pool) error {
	missing, err := missingTables(ctx, pool)
	if err != nil {
		return fmt.Errorf("checking the schema: %w", err)
	}

	gaps, err := gaps(ctx, pool)
	if err != nil {
		return fmt.Errorf("checking the role's privileges: %w", err)
	}

	switch {
	case len(gaps) > 0:
		return &SetupError{fmt.Sprintf("the role %s lacks privileges on the database. Run as %s:\n%s", gaps[0].Role, gaps[0].Owner, grants(gaps))}
	case len(missing) > 0:
		return &SetupError{fmt.Sprintf("the schema is not up to date, table %s is missing: run `millrace migrate up` as the owner of the tables, "+
			"or check the role's search_path", strings.Join(missing, ", "))}
	}

	list, err := Migrations(ctx, pool)
	for _, m := range list {
		if !m.Applied {
			return &SetupError{fmt.Sprintf("the schema is not up to date: migration %s has not been applied; run `millrace migrate up` as the owner of the tables", m.Name)}
		}
	}

	return err
}

// missingTables returns the tables of the schema that do not exist anywhere.
func missingTables(ctx context.Context, db Querier) ([]string, error) {
	return Collect(ctx, db, pgx.RowTo[string], `
		SELECT name FROM unnest($1::text[]) WITH ORDINALITY AS t (name, n)
		WHERE to_regclass(name) IS NULL
		ORDER BY n`, migrations.Tables())
}

// gaps returns the privileges that the role lacks. A schema that the role cannot use
// hides its tables, so such a schema is reported on its own.
func gaps(ctx context.Context, db Querier) ([]gap, error) {
	list, err := Collect(ctx, db, pgx.RowToStructByPos[gap], `
		SELECT DISTINCT format('SCHEMA %I', n.nspname), 'USAGE', quote_ident(current_user), pg_get_userbyid(c.relowner)
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE to_regclass(($1::text[])[1]) IS NULL AND c.relname = ($1::text[])[1] AND NOT has_schema_privilege(n.oid, 'USAGE')
		UNION ALL
		(WITH tables AS (SELECT to_regclass(name) AS oid FROM unnest($1::text[]) AS name)
		SELECT format('%s %I.%I', CASE relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, nspname, relname), privilege,
		       quote_ident(current_user), pg_get_userbyid(relowner)
		FROM (
			SELECT c.oid, c.relkind, c.relnamespace, c.relname, c.relowner, privilege
			FROM tables JOIN pg_class c USING (oid), unnest('{SELECT,INSERT,UPDATE,DELETE}'::text[]) AS privilege
			WHERE NOT has_table_privilege(c.oid, privilege)
			UNION ALL
			SELECT c.oid, c.relkind, c.relnamespace, c.relname, c.relowner, 'SELECT' -- to read last_value
			FROM tables JOIN pg_depend d ON d.refobjid = tables.oid AND d.deptype = 'i' AND d.classid = 'pg_class'::regclass
			JOIN pg_class c ON c.oid = d.objid AND c.relkind = 'S'
			WHERE NOT has_table_privilege(c.oid, 'SELECT')
			UNION ALL
			SELECT c.oid, c.relkind, c.relnamespace, c.relname, c.relowner, 'SELECT'
			FROM pg_class c WHERE c.oid = to_regclass($2) AND NOT has_table_privilege(c.oid, 'SELECT')
		) AS lacking JOIN pg_namespace n ON n.oid = relnamespace
		ORDER BY relkind = 'S', relname, array_position('{SELECT,INSERT,UPDATE,DELETE}'::text[], privilege))`, migrations.Tables(), versionTable)

	return list, err
}

// grants returns the statements that close the gaps, one per set of privileges and
// kind of object.
func grants(gaps []gap) string {
	var (
		objects    []string
		privileges = map[string][]string{}
	)

	for _, g := range gaps {
		if privileges[g.Object] == nil {
			objects = append(objects, g.Object)
		}

		privileges[g.Object] = append(privileges[g.Object], g.Privilege)
	}

	var (
		statements []string
		names      = map[string][]string{}
	)

	for _, object := range objects {
		kind, name, _ := strings.Cut(object, " ")

		statement := fmt.Sprintf("GRANT %s ON %s", strings.Join(privileges[object], ", "), kind)
		if !slices.Contains(statements, statement) {
			statements = append(statements, statement)
		}

		names[statement] = append(names[statement], name)
	}

	for i, statement := range statements {
		statements[i] = fmt.Sprintf("  %s %s TO %s;", statement, strings.Join(names[statement], ", "), gaps[0].Role)
	}

	return strings.Join(statements, "\n")
}

// OwnerError reports that the role cannot change a table, because another role owns
// the table.
type OwnerError struct{ Role, Table, Owner string }

func (e *OwnerError) Error() string {
	return fmt.Sprintf("the role %s cannot change table %s, which belongs to %s", e.Role, e.Table, e.Owner)
}

// CheckOwner returns an OwnerError unless the role may change the definition of a
// table.
func CheckOwner(ctx context.Context, db Querier, table string) error {
	found, err := Collect(ctx, db, pgx.RowToStructByPos[OwnerError], `
		SELECT current_user::text, relname::text, pg_get_userbyid(relowner)::text FROM pg_class
		WHERE oid = $1::text::regclass AND NOT (pg_has_role(relowner, 'USAGE') AND has_schema_privilege(relnamespace, 'CREATE'))`, table)

	switch {
	case err != nil:
		return fmt.Errorf("finding the owner of %s: %w", table, err)
	case len(found) > 0:
		return &found[0]
	default:
		return nil
	}
}
