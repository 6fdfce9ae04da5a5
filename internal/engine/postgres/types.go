package postgres

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// registerTypes makes a connection read times in UTC, whatever the machine's zone. It
// also exchanges uuid.UUID as 16 bytes, where pgx would format and parse text, and sends
// []string without an allocation per string. Each message has several of both.
func registerTypes(_ context.Context, conn *pgx.Conn) error {
	id := &pgtype.Type{Name: "uuid", OID: pgtype.UUIDOID, Codec: uuidCodec{}}
	text := &pgtype.Type{Name: "text", OID: pgtype.TextOID, Codec: pgtype.TextCodec{}}

	for _, t := range []*pgtype.Type{
		{Name: "timestamptz", OID: pgtype.TimestamptzOID, Codec: &pgtype.TimestamptzCodec{ScanLocation: time.UTC}},
		id,
		{Name: "_uuid", OID: pgtype.UUIDArrayOID, Codec: &pgtype.ArrayCodec{ElementType: id}},
		{Name: "_text", OID: pgtype.TextArrayOID, Codec: textsCodec{&pgtype.ArrayCodec{ElementType: text}}},
	} {
		conn.TypeMap().RegisterType(t)
	}

	return nil
}

// uuidCodec adds uuid.UUID to pgx's codec.
type uuidCodec struct{ pgtype.UUIDCodec }

// PlanEncode implements pgtype.Codec.
func (c uuidCodec) PlanEncode(m *pgtype.Map, oid uint32, format int16, value any) pgtype.EncodePlan {
	switch value.(type) {
	case uuid.UUID, *uuid.UUID:
		if format == pgtype.BinaryFormatCode {
			return uuidPlan{}
		}
	}

	return c.UUIDCodec.PlanEncode(m, oid, format, value)
}

// PlanScan implements pgtype.Codec.
func (c uuidCodec) PlanScan(m *pgtype.Map, oid uint32, format int16, target any) pgtype.ScanPlan {
	if _, ok := target.(*uuid.UUID); ok && format == pgtype.BinaryFormatCode {
		return uuidPlan{}
	}

	return c.UUIDCodec.PlanScan(m, oid, format, target)
}

// uuidPlan encodes and scans in the binary format.
type uuidPlan struct{}

// Encode implements pgtype.EncodePlan.
func (uuidPlan) Encode(value any, buf []byte) ([]byte, error) {
	switch id := value.(type) {
	case uuid.UUID:
		return append(buf, id[:]...), nil
	case *uuid.UUID:
		return append(buf, id[:]...), nil
	default:
		return nil, fmt.Errorf("encoding %T as uuid", value)
	}
}

// Scan implements pgtype.ScanPlan. Like uuid.UUID itself, it ignores NULL.
func (uuidPlan) Scan(src []byte, target any) error {
	id, ok := target.(*uuid.UUID)
	if !ok || src != nil && len(src) != len(id) {
		return fmt.Errorf("scanning %d bytes of a uuid into %T", len(src), target)
	}

	copy(id[:], src)

	return nil
}

// textsCodec adds []string to pgx's codec.
type textsCodec struct{ *pgtype.ArrayCodec }

// PlanEncode implements pgtype.Codec.
func (c textsCodec) PlanEncode(m *pgtype.Map, oid uint32, format int16, value any) pgtype.EncodePlan {
	if _, ok := value.([]string); ok && format == pgtype.BinaryFormatCode {
		return textsPlan{}
	}

	return c.ArrayCodec.PlanEncode(m, oid, format, value)
}

// textsPlan encodes a []string in the binary format of arrays: dimensions, whether there
// are NULLs, the type, then the length and the lower bound of each dimension. nil is
// NULL.
type textsPlan struct{}

// Encode implements pgtype.EncodePlan.
func (textsPlan) Encode(value any, buf []byte) ([]byte, error) {
	texts, ok := value.([]string)
	if !ok {
		return nil, fmt.Errorf("encoding %T as text[]", value)
	}

	if texts == nil {
		return nil, nil
	}

	header := []int{1, 0, pgtype.TextOID, len(texts), 1}
	if len(texts) == 0 {
		header = []int{0, 0, pgtype.TextOID}
	}

	size := 4 * len(header)
	for _, text := range texts {
		size += 4 + len(text)
	}

	buf = slices.Grow(buf, size)

	for _, n := range header {
		buf = appendInt32(buf, n)
	}

	for _, text := range texts {
		buf = append(appendInt32(buf, len(text)), text...)
	}

	return buf, nil
}

// appendInt32 appends n, a number of elements or bytes in a message that Postgres accepts.
// Such a message is smaller than 1 GB.
func appendInt32(buf []byte, n int) []byte {
	return binary.BigEndian.AppendUint32(buf, uint32(n)) //nolint:gosec // see above
}
