"""The functions that a condition may use.

Left out on purpose: what reads files, settings, variables or the environment; what differs from one run to
the next (a trace is decided the same on every run); what makes much of little (`repeat`, `range`, `lpad`)
or takes the square of its input's length (`levenshtein`).
"""

_OPERATORS = "+ - * / // % ** ^ | & << >> ~ || ->> ~~ !~~ ~~* !~~* ~~~ ^@ @> <@ && like_escape not_like_escape ilike_escape not_ilike_escape"
_TEXT = """
    ascii bit_length char_length character_length chr concat concat_ws contains ends_with instr lcase left len
    length lower ltrim octet_length ord position prefix regexp_escape regexp_extract regexp_extract_all
    regexp_full_match regexp_matches regexp_replace regexp_split_to_array replace reverse right rtrim split
    starts_with str_split str_split_regex string_split string_split_regex string_to_array strip_accents strlen
    strpos substr substring suffix translate trim ucase unicode upper nfc_normalize url_decode md5 sha256
"""
_NUMBERS = """
    abs ceil ceiling exp floor greatest isfinite isinf isnan least ln log log10 log2 mod pow power round sign
    sqrt trunc add subtract multiply divide
"""
_CHOICE = "if ifnull nullif typeof"
_LISTS = """
    apply array_contains array_extract array_filter array_has array_has_all array_has_any array_length
    array_position array_slice array_transform element_at filter flatten list_any_value list_apply list_avg
    list_concat list_contains list_count list_distinct list_element list_extract list_filter list_first list_has
    list_has_all list_has_any list_indexof list_intersect list_last list_max list_min list_position
    list_reverse_sort list_slice list_sort list_sum list_transform list_unique list_value struct_extract
    struct_pack
"""
_JSON = """
    json_array_length json_contains json_exists json_extract json_extract_path json_extract_path_text
    json_extract_string json_keys json_type json_valid json_value to_json from_json json
"""
_TIMES = """
    age date_diff date_part date_sub date_trunc datediff datepart datesub datetrunc day dayname dayofmonth
    dayofweek dayofyear epoch epoch_ms hour isodow last_day make_date make_timestamp millisecond minute month
    monthname quarter second strftime strptime timezone to_days to_hours to_microseconds to_milliseconds
    to_minutes to_months to_seconds to_timestamp to_weeks to_years try_strptime week weekday year
"""

FUNCTIONS = frozenset(" ".join((_OPERATORS, _TEXT, _NUMBERS, _CHOICE, _LISTS, _JSON, _TIMES)).split())
