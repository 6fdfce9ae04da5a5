package postgres

import (
	"cmp"
	"context"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"unicode/utf16"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/migrations"
)

// Found is a row that contains a text.
type Found struct {
	Table string `json:"table"`
	// Row is the primary key, or the message id if the table has no primary key.
	Row string `json:"row"`
	// Columns are the columns that contain the text.
	Columns []string `json:"columns"`

	// partition and tid locate the row.
	partition, tid string
}

// Search finds strings in all tables of the schema, as whole words, ignoring case, in
// plain text and as spelled in JSON and URLs. It reads every row.
type Search struct {
	// Texts are searched for in all columns.
	Texts []string
	// ID is also searched for, except in columns that hold ids on purpose. A text that
	// equals the ID is not searched for in those columns either.
	ID string
	// Limit is the maximum number of rows returned per table or partition.
	Limit int
	// Within, if not nil, restricts the search to rows that an earlier search
	// found.
	Within []Found
}

// idColumns hold ids on purpose: what they name is not erased.
var idColumns = []string{"id", "user_id", "stream", "key", "failed_key", "subject", "who"}

// ownColumns hold only names that the program defines, not data. They are not searched.
// Tables that have no other text are therefore not searched at all.
var ownColumns = []string{"consumer", "topic", "group_id", "first_release", "last_release", "version_id"}

// table is a table, or a partition, with the columns that hold text.
type table struct {
	Name, Parent string
	Text, Bytes  []string
	Key          []string
	// KeyType is the type of the primary key if that is a single column. A row can then
	// be found by its key even after it has changed.
	KeyType  *string
	Readable bool
}

// Findings are what a search found.
type Findings struct {
	Rows []Found
	// More is true if a table has as many rows as the limit, so that there may be more.
	More bool
	// Skipped are the tables that the role cannot read, such as a copy that somebody
	// made.
	Skipped []string
}

// Find returns the rows that contain one of the strings. It reads the tables in the
// service's schema. The other schemas in the database belong to other programs.
func Find(ctx context.Context, db Querier, s Search) (found Findings, err error) {
	tables, err := Collect(ctx, db, pgx.RowToStructByPos[table], `
		SELECT c.oid::regclass::text, coalesce((SELECT inhparent::regclass FROM pg_inherits WHERE inhrelid = c.oid), c.oid::regclass)::text,
		       array_agg(a.attname::text ORDER BY a.attnum) FILTER (WHERE a.atttypid <> 'bytea'::regtype),
		       array_agg(a.attname::text ORDER BY a.attnum) FILTER (WHERE a.atttypid = 'bytea'::regtype),
		       coalesce((SELECT array_agg(k.attname::text ORDER BY array_position(i.indkey::int2[], k.attnum))
		                 FROM pg_index i JOIN pg_attribute k ON k.attrelid = c.oid AND k.attnum = ANY(i.indkey)
		                 WHERE i.indrelid = c.oid AND i.indisprimary), ARRAY['message_id']),
		       (SELECT format_type(k.atttypid, NULL) FROM pg_index i JOIN pg_attribute k ON k.attrelid = c.oid AND k.attnum = i.indkey[0]
		        WHERE i.indrelid = c.oid AND i.indisprimary AND i.indnatts = 1),
		       has_table_privilege(c.oid, 'SELECT')
		FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
		WHERE c.relkind = 'r' AND c.relpersistence <> 't'
		  AND c.relnamespace IN (SELECT relnamespace FROM pg_class WHERE oid IN (SELECT to_regclass(name) FROM unnest($2::text[]) AS name))
		  AND a.attnum > 0 AND NOT a.attisdropped AND NOT a.attname = ANY($1)
		  AND a.atttypid IN ('text'::regtype, 'varchar'::regtype, 'json'::regtype, 'jsonb'::regtype, 'bytea'::regtype, 'text[]'::regtype)
		GROUP BY c.oid ORDER BY 2, 1`, ownColumns, migrations.Tables())
	if err != nil {
		return found, fmt.Errorf("listing the tables to search: %w", err)
	}

	for _, t := range tables {
		if s.Within != nil && !slices.ContainsFunc(s.Within, func(f Found) bool { return f.partition == t.Name }) {
			continue
		}

		if !t.Readable {
			found.Skipped = append(found.Skipped, t.Name)

			continue
		}

		rows, err := s.in(ctx, db, t)
		if err != nil {
			return found, fmt.Errorf("searching %s: %w", t.Name, err)
		}

		found.Rows, found.More = append(found.Rows, rows...), found.More || len(rows) == s.Limit
	}

	return found, nil
}

// in searches one table.
func (s Search) in(ctx context.Context, db Querier, t table) ([]Found, error) {
	var conditions, columns []string

	add := func(name, condition string) {
		conditions = append(conditions, condition)
		columns = append(columns, fmt.Sprintf("CASE WHEN %s THEN '%s' END", condition, name))
	}
	quoted := func(name string) string { return pgx.Identifier{name}.Sanitize() }

	for _, name := range t.Text {
		pattern := "$1"
		if slices.Contains(idColumns, name) {
			pattern = "$2"
		}

		add(name, quoted(name)+"::text ~* "+pattern)
	}

	for _, name := range t.Bytes {
		add(name, "encode("+quoted(name)+", 'escape') ~* $3")
	}

	others := slices.DeleteFunc(slices.Clone(s.Texts), func(text string) bool { return strings.EqualFold(text, s.ID) })
	within := ""
	args := []any{pattern(s.Texts, s.ID, plain), pattern(others, "", plain), pattern(s.Texts, s.ID, escaped)}

	if s.Within != nil {
		own := slices.DeleteFunc(slices.Clone(s.Within), func(f Found) bool { return f.partition != t.Name })

		if t.KeyType != nil {
			args = append(args, Column(own, func(f Found) string { return f.Row }))
			within = fmt.Sprintf("%s = ANY($4::text[]::%s[]) AND", quoted(t.Key[0]), *t.KeyType)
		} else {
			args = append(args, Column(own, func(f Found) string { return f.tid }))
			within = "ctid = ANY($4::text[]::tid[]) AND"
		}
	}

	// Use every parameter, so that the server knows its type.
	sql := fmt.Sprintf(`
		SELECT ctid::text, concat_ws(' ', %s), array_remove(ARRAY[%s], NULL) FROM ONLY %s
		WHERE %s (%s) AND num_nulls($1::text, $2::text, $3::text) = 0 LIMIT %d`,
		strings.Join(Column(t.Key, quoted), ", "), strings.Join(columns, ", "), t.Name, within, strings.Join(conditions, " OR "), s.Limit)

	rows, err := db.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}

	found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Found, error) {
		f := Found{Table: t.Parent, partition: t.Name}

		return f, row.Scan(&f.tid, &f.Row, &f.Columns)
	})

	// Sort numbers by value: a shorter one is smaller.
	slices.SortFunc(found, func(a, b Found) int { return cmp.Or(len(a.Row)-len(b.Row), strings.Compare(a.Row, b.Row)) })

	return found, err
}

// never matches nothing.
const never = `(?!)`

// escapes lets JSON escapes match even if they are escaped again, as in JSON within JSON.
var escapes = strings.NewReplacer(`\\\\u`, `\\+u`, `\\u`, `\\+u`)

// pattern returns a Postgres regular expression that matches any of the strings as a whole
// word. The word may directly follow an escape that ends in a letter or a digit: one of
// JSON, or an octal escape of encode.
func pattern(texts []string, id string, spell func(string) string) string {
	if id != "" {
		texts = append(slices.Clone(texts), id)
	}

	if len(texts) == 0 {
		return never
	}

	var spellings []string

	for _, text := range texts {
		for _, spelling := range []string{text, ascii(text), url.QueryEscape(text), url.PathEscape(text)} {
			if spelling = escapes.Replace(regexp.QuoteMeta(spell(spelling))); !slices.Contains(spellings, spelling) {
				spellings = append(spellings, spelling)
			}
		}
	}

	return `(?:^|[^[:alnum:]_]|\\+[bfnrt]|\\+u[0-9a-f]{4}|\\[0-7]{3})(?:` + strings.Join(spellings, "|") + `)(?:$|[^[:alnum:]_])`
}

func plain(text string) string { return text }

// escaped returns a text as encode(..., 'escape') writes it.
func escaped(text string) string {
	var b strings.Builder

	for _, c := range []byte(text) {
		switch {
		case c == '\\':
			b.WriteString(`\\`)
		case c == 0 || c >= 0x80:
			fmt.Fprintf(&b, `\%03o`, c)
		default:
			b.WriteByte(c)
		}
	}

	return b.String()
}

// ascii returns a text as it appears in ASCII-only JSON, which Python writes.
func ascii(text string) string {
	var b strings.Builder

	for _, r := range text {
		if r < 0x80 {
			b.WriteRune(r)

			continue
		}

		for _, unit := range utf16.Encode([]rune{r}) {
			fmt.Fprintf(&b, `\u%04x`, unit)
		}
	}

	return b.String()
}
