package event

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strconv"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// wholeNumbers decodes whole numbers in every JSON notation: 2, 2.0 and 20e-1 are
// the same number (RFC 8259, section 6), and other systems write them differently.
// On its own, the decoder accepts only 2. The option slows it down, so it is used only
// for JSON that the decoder has refused.
var wholeNumbers = json.WithUnmarshalers(json.UnmarshalFromFunc(decodeWhole))

func decodeWhole(dec *jsontext.Decoder, to any) error {
	target := reflect.ValueOf(to).Elem()
	if _, custom := to.(json.Unmarshaler); custom || !target.CanInt() || dec.PeekKind() != '0' {
		return errors.ErrUnsupported
	}

	value, err := dec.ReadValue()
	if err != nil {
		return err
	}

	n, err := wholeNumber(value)
	if err == nil && target.OverflowInt(n) {
		err = outOfRange(value)
	}

	if err == nil {
		target.SetInt(n)
	}

	return err
}

// refusedNumber reports whether the decoder refused to read a number as an integer.
func refusedNumber(err error) bool {
	semantic, ok := errors.AsType[*json.SemanticError](err)

	return ok && semantic.JSONKind == '0' && semantic.GoType != nil && reflect.Zero(semantic.GoType).CanInt()
}

// wholeNumber returns the value of a JSON number. It takes time and memory in
// proportion to the length of the text, not to the size of the number.
func wholeNumber(text []byte) (int64, error) {
	if n, err := strconv.ParseInt(string(text), 10, 64); err == nil {
		return n, nil
	}

	mantissa, exponent := text, 0
	if e := bytes.IndexAny(text, "eE"); e >= 0 {
		mantissa = text[:e]
		exponent = saturated(text[e+1:])
	}

	digits, negative := bytes.CutPrefix(mantissa, []byte("-"))
	whole, fraction, _ := bytes.Cut(digits, []byte("."))
	digits = append(bytes.Clone(whole), fraction...)
	point := len(whole) + exponent // the digits before the decimal point

	significant := bytes.TrimLeft(digits, "0")
	point -= len(digits) - len(significant)
	significant = bytes.TrimRight(significant, "0")

	switch {
	case len(significant) == 0:
		return 0, nil
	case point < len(significant):
		return 0, fmt.Errorf("is %.40s, expected a whole number", text)
	case point > 19: // digits of the largest int64
		return 0, outOfRange(text)
	}

	significant = append(significant, bytes.Repeat([]byte("0"), point-len(significant))...)
	if negative {
		significant = append([]byte("-"), significant...)
	}

	n, err := strconv.ParseInt(string(significant), 10, 64)
	if err != nil {
		return 0, outOfRange(text)
	}

	return n, nil
}

func outOfRange(text []byte) error {
	return fmt.Errorf("is %.40s, out of range, expected a whole number", text)
}

// saturated parses an exponent. If the exponent does not fit, saturated returns one that
// makes the number out of range or not whole.
func saturated(exponent []byte) int {
	n, err := strconv.ParseInt(string(exponent), 10, 32)
	if err != nil && bytes.HasPrefix(exponent, []byte("-")) {
		return math.MinInt32
	}

	if err != nil {
		return math.MaxInt32
	}

	return int(n)
}
