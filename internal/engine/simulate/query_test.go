package simulate_test

import (
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgtype"
)

// statement is one statement of the engine: text is a part that identifies it. params and
// columns are the names of types. run returns the number of rows that it affected.
type statement struct {
	text, params, columns string
	run                   func(q *query) int
}

// query is a statement that runs.
type query struct {
	*session
	*statement

	sql string
	// t is the state that the statement reads and changes.
	t *tables
	// bind has the arguments, nil in the simple protocol.
	bind *pgproto3.Bind
	// describe is true if the rows have not been described.
	describe bool
	rows     [][]any
	err      *pgproto3.ErrorResponse
}

var types = map[string]uint32{
	"text": pgtype.TextOID, "text[]": pgtype.TextArrayOID, "uuid": pgtype.UUIDOID, "uuid[]": pgtype.UUIDArrayOID,
	"int2": pgtype.Int2OID, "int2[]": pgtype.Int2ArrayOID, "int4": pgtype.Int4OID, "int4[]": pgtype.Int4ArrayOID,
	"int8": pgtype.Int8OID, "int8[]": pgtype.Int8ArrayOID, "date": pgtype.DateOID, "date[]": pgtype.DateArrayOID,
	"bytea": pgtype.ByteaOID, "bytea[]": pgtype.ByteaArrayOID, "bool": pgtype.BoolOID, "bool[]": pgtype.BoolArrayOID,
	"float8": pgtype.Float8OID, "float8[]": pgtype.Float8ArrayOID, "timestamptz": pgtype.TimestamptzOID,
	"timestamptz[]": pgtype.TimestamptzArrayOID, "interval": pgtype.IntervalOID, "ranges": pgtype.Int8multirangeOID, "json": pgtype.JSONOID,
}

func oids(names string) (list []uint32) {
	for name := range strings.FieldsSeq(names) {
		list = append(list, types[name])
	}

	return list
}

func describe(s *statement, formats []int16) *pgproto3.RowDescription {
	d := &pgproto3.RowDescription{}

	for i, oid := range oids(s.columns) {
		d.Fields = append(d.Fields, pgproto3.FieldDescription{Name: fmt.Appendf(nil, "c%d", i), DataTypeOID: oid, DataTypeSize: -1, TypeModifier: -1, Format: formatOf(formats, i)})
	}

	return d
}

func formatOf(formats []int16, i int) int16 {
	switch len(formats) {
	case 0:
		return 0
	case 1:
		return formats[0]
	default:
		return formats[i]
	}
}

// arg returns an argument; the first is 1.
func arg[T any](q *query, n int) (value T) {
	oid := oids(q.params)[n-1]
	if err := q.types.Scan(oid, formatOf(q.bind.ParameterFormatCodes, n-1), q.bind.Parameters[n-1], &value); err != nil {
		panic(fmt.Sprintf("argument %d of %s: %v", n, q.text, err))
	}

	return value
}

func (q *query) add(values ...any) { q.rows = append(q.rows, values) }

// fail makes the statement fail.
func (q *query) fail(code, message string) int {
	q.err = &pgproto3.ErrorResponse{Severity: "ERROR", SeverityUnlocalized: "ERROR", Code: code, Message: message}

	return 0
}

// execute runs a statement and sends its rows.
func (c *session) execute(q *query, unavailable bool) {
	switch {
	case c.broke:
		return
	case controls(q.sql) && !unavailable:
		c.control(q.sql)

		return
	case c.failed:
		q.fail("25P02", "current transaction is aborted")
	case unavailable:
		q.fail("53200", "out of memory")
	}

	n := 0

	if q.err == nil {
		before := c.now
		q.t = c.tx

		if q.t == nil && strings.HasPrefix(strings.TrimSpace(q.sql), "SELECT") {
			q.t = before // it changes nothing
		} else if q.t == nil {
			q.t = before.clone()
		}

		n = q.run(q)

		if c.tx == nil && q.t != before && q.err == nil {
			c.w.committing(before, q.t)
			c.now = q.t
		}

		if c.tx == nil {
			c.finish()
		}
	}

	if q.err != nil {
		c.broke, c.failed = q.bind != nil, c.tx != nil
		c.back.Send(q.err)

		return
	}

	c.send(q)
	c.complete(fmt.Sprintf("%s %d", tagOf(q), max(n, len(q.rows))))
}

// finish runs what waits for the end of a transaction.
func (c *session) finish() {
	for _, fn := range c.after {
		fn()
	}

	c.after = nil
}

func tagOf(q *query) string {
	switch {
	case strings.Contains(q.sql, "INSERT"):
		return "INSERT 0"
	case strings.Contains(q.sql, "UPDATE "):
		return "UPDATE"
	case strings.Contains(q.sql, "DELETE"):
		return "DELETE"
	default:
		return "SELECT"
	}
}

func (c *session) send(q *query) {
	var formats []int16
	if q.bind != nil {
		formats = q.bind.ResultFormatCodes
	}

	if q.describe {
		c.back.Send(describe(q.statement, formats))
	}

	columns := oids(q.columns)

	for _, row := range q.rows {
		values := make([][]byte, len(row))

		for i, value := range row {
			data, err := c.types.Encode(columns[i], formatOf(formats, i), value, []byte{})
			if err != nil {
				panic(fmt.Sprintf("column %d of %s: %v", i, q.text, err))
			}

			values[i] = data
		}

		c.back.Send(&pgproto3.DataRow{Values: values})
	}
}

// find returns the statement with a text. An unknown one ends the test: the model must
// then learn it.
func (c *session) find(sql string) *statement {
	if controls(sql) {
		return &statement{text: sql}
	}

	if s := filtered(sql); s != nil {
		return s
	}

	for i := range statements {
		if strings.Contains(sql, statements[i].text) {
			return &statements[i]
		}
	}

	panic("the model of Postgres does not know the statement " + sql)
}
