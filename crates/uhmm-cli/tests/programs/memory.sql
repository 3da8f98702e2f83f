-- A database in memory: a million rows, an index, joins, updates, and a check of itself.
PRAGMA cache_size = -400000;
PRAGMA temp_store = MEMORY;
CREATE TABLE item (id INTEGER PRIMARY KEY, owner INTEGER, price INTEGER, name TEXT);
INSERT INTO item
  WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000)
  SELECT i, i * 7919 % 10007, i * 104729 % 99991, printf('item-%08d-%08x', i, i * 2654435761 % 4294967296) FROM n;
SELECT count(*), sum(price), max(name) FROM item;
CREATE INDEX item_owner ON item (owner, price);
SELECT count(*), sum(price) FROM item WHERE owner BETWEEN 4000 AND 5000;
SELECT owner, count(*), sum(price) FROM item GROUP BY owner ORDER BY sum(price) DESC, owner LIMIT 5;
UPDATE item SET price = price + 1 WHERE id % 10 = 0;
DELETE FROM item WHERE id % 11 = 0;
SELECT count(*), sum(price), sum(length(name)) FROM item;
SELECT a.id, b.id, a.name FROM item a JOIN item b ON b.id = a.price + 1
  WHERE a.owner = 77 ORDER BY a.id LIMIT 5;
PRAGMA integrity_check;
