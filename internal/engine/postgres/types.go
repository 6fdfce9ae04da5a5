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
// []string and []uuid.UUID without an allocation per element. Each message has several of
// both.
func registerTypes(_ context.Context, conn *pgx.Conn) error {
	id := &pgtype.Type{Name: "uuid", OID: pgtype.UUIDOID, Codec: uuidCodec{}}
	text := &pgtype.Type{Name: "text", OID: pgtype.TextOID, Codec: pgtype.TextCodec{}}

	for _, t := range []*pgtype.Type{
		{Name: "timestamptz", OID: pgtype.TimestamptzOID, Codec: &pgtype.TimestamptzCodec{ScanLocation: time.UTC}},
		id,
		{Name: "_uuid", OID: pgtype.UUIDArrayOID, Codec: arrayCodec{&pgtype.ArrayCodec{ElementType: id}}},
		{Name: "_text", OID: pgtype.TextArrayOID, Codec: arrayCodec{&pgtype.ArrayCodec{ElementType: text}}},
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

// arrayCodec adds []string as text[] and []uuid.UUID as uuid[] to pgx's codec.
type arrayCodec struct{ *pgtype.ArrayCodec }

// PlanEncode implements pgtype.Codec.
func (c arrayCodec) PlanEncode(m *pgtype.Map, oid uint32, format int16, value any) pgtype.EncodePlan {
	_, texts := value.([]string)
	_, ids := value.([]uuid.UUID)

	if format == pgtype.BinaryFormatCode && (texts && oid == pgtype.TextArrayOID || ids && oid == pgtype.UUIDArrayOID) {
		return arrayPlan{}
	}

	return c.ArrayCodec.PlanEncode(m, oid, format, value)
}

// arrayPlan encodes a []string or a []uuid.UUID in the binary format of arrays:
// dimensions, whether there are NULLs, the type, the length and the lower bound of each
// dimension, then the length and the bytes of each element. nil is NULL.
type arrayPlan struct{}

// Encode implements pgtype.EncodePlan.
func (arrayPlan) Encode(value any, buf []byte) ([]byte, error) {
	switch array := value.(type) {
	case []string:
		return appendArray(buf, pgtype.TextOID, array, func(text *string) string { return *text }), nil
	case []uuid.UUID:
		return appendArray(buf, pgtype.UUIDOID, array, func(id *uuid.UUID) []byte { return id[:] }), nil
	default:
		return nil, fmt.Errorf("encoding %T as an array", value)
	}
}

func appendArray[E any, B string | []byte](buf []byte, oid int, array []E, bytesOf func(*E) B) []byte {
	if array == nil {
		return nil
	}

	header := []int{1, 0, oid, len(array), 1}
	if len(array) == 0 {
		header = []int{0, 0, oid}
	}

	size := 4 * len(header)
	for i := range array {
		size += 4 + len(bytesOf(&array[i]))
	}

	buf = slices.Grow(buf, size)

	for _, n := range header {
		buf = appendInt32(buf, n)
	}

	for i := range array {
		element := bytesOf(&array[i])
		buf = append(appendInt32(buf, len(element)), element...)
	}

	return buf
}

// appendInt32 appends n, a number of elements or bytes in a message that Postgres accepts.
// Such a message is smaller than 1 GB.
func appendInt32(buf []byte, n int) []byte {
	return binary.BigEndian.AppendUint32(buf, uint32(n)) //nolint:gosec // see above
}
