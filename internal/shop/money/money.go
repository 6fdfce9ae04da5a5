// Package money represents amounts as decimals with an ISO 4217 currency, never
// as floats.
package money

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/shopspring/decimal"
)

// Limits on an amount: what numeric(24,6) in the schema holds.
const (
	maxText          = 40
	maxIntegerDigits = 18
	maxPlaces        = 6
)

// Amount is a decimal number. It is read from a JSON number or string and written
// as a number without trailing zeros: 1e2 and "100.00" become 100.
type Amount struct{ decimal.Decimal }

// Parse reads a decimal such as "99.99". Besides JSON numbers, it accepts what other
// systems write in strings: .5, 5. and +5.
func Parse(text string) (Amount, error) {
	if len(text) > maxText {
		return Amount{}, fmt.Errorf("has %d characters, expected a decimal number of at most %d", len(text), maxText)
	}

	d, err := decimal.NewFromString(text)
	if err != nil {
		return Amount{}, fmt.Errorf("is %q, expected a decimal number such as 99.99", text)
	}

	// Check the exponent before computing anything: 1e1000000000 is short as text
	// but does not fit into memory.
	if exponent := d.Exponent(); exponent > maxIntegerDigits || exponent < -maxText {
		return Amount{}, fmt.Errorf("is %s, out of range", text)
	}

	return Amount{d}, nil
}

// MustParse is Parse for constants; it panics on an error.
func MustParse(text string) Amount { return Amount{decimal.RequireFromString(text)} }

// UnmarshalJSON reads a number or a string that contains one.
func (a *Amount) UnmarshalJSON(data []byte) error {
	text := string(data)
	if text[0] == '"' {
		if err := json.Unmarshal(data, &text); err != nil {
			return err
		}
	}

	parsed, err := Parse(text)
	if err != nil {
		return err
	}

	*a = parsed

	return nil
}

// MarshalJSON writes a number.
func (a Amount) MarshalJSON() ([]byte, error) { return []byte(a.String()), nil }

// Equal reports whether both are the same number, regardless of notation.
func (a Amount) Equal(b Amount) bool { return a.Decimal.Equal(b.Decimal) }

// Check validates a price: the currency must be in ISO 4217, and the amount must
// not be missing (nil), negative, too large or finer than the currency's smallest
// unit. Errors begin with the path in field; the currency is in the same object.
func Check(field string, amount *Amount, code string) error {
	places, known := Places(code)
	if amount != nil && !known {
		return fmt.Errorf("%s: is %q, expected an ISO 4217 code such as %s", sibling(field, "currency"), code, DefaultCurrency)
	}

	return check(field, amount, places, code)
}

// CheckMoved validates an amount that has already moved. Unlike a price, it may be in a
// currency that has since left ISO 4217, or in one that only the provider knows.
func CheckMoved(field string, amount *Amount, code string) error {
	if !shape.MatchString(code) {
		return fmt.Errorf("%s: is %q, expected a code of three capital letters such as %s", sibling(field, "currency"), code, DefaultCurrency)
	}

	places, known := Places(code)
	if !known {
		places = maxPlaces
	}

	return check(field, amount, places, code)
}

// shape matches every ISO 4217 code; the schema has the same check.
var shape = regexp.MustCompile(`^[A-Z]{3}$`)

// sibling returns the path of the field called name in the same object as field.
func sibling(field, name string) string { return field[:strings.LastIndex(field, ".")+1] + name }

func check(field string, amount *Amount, places int32, code string) error {
	switch {
	case amount == nil:
		return fmt.Errorf("%s: is missing, expected a decimal number", field)
	case amount.IsNegative():
		return fmt.Errorf("%s: is %s, expected 0 or more", field, amount)
	case amount.GreaterThanOrEqual(decimal.New(1, maxIntegerDigits)):
		return fmt.Errorf("%s: is %s, expected less than 10^%d", field, amount, maxIntegerDigits)
	case !amount.Equal(Amount{amount.Truncate(places)}):
		return fmt.Errorf("%s: is %s, expected at most %d decimal places in %s", field, amount, places, code)
	}

	return nil
}
